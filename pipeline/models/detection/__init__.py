"""One-stage detectors as plain networks: images in, tensors out; loss, decoding and NMS are the task's.

Their forward answers images (N, C, H, W) with a dict of what A anchors predict, which the task `detection` reads:

cls_logits (N, A, K) and bbox_regression (N, A, 4); anchors (A, 4), x1, y1, x2, y2 in pixels; extent (4,): W, H, W, H.
With bbox_ctrness (N, A, 1) boxes and loss are those of FCOS (Tian et al., arXiv 1904.01355), and anchors are squares
of the stride about each place; with background_logits (N, A, 1) those of SSD (Liu et al., arXiv 1512.02325); with
neither those of RetinaNet (Lin et al., arXiv 1708.02002); each as torchvision computes it.
"""
