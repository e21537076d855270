"""What detection is made of: how boxes are coded, losses, non-maximum suppression, average precision, and pictures"""
