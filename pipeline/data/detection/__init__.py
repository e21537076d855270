"""Images with boxes: the readers of their files, and batches whose boxes move with the pixels"""
