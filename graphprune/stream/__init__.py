"""Cutting checkpoints without loading them: tensors know what they will be, and are computed as they are written."""
