"""Inference engines that follow a run: what each of them imports by itself."""
