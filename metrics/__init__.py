"""Measures images: FID, FD_DINOv2 and their companions, from any folder, archive or training loop."""
