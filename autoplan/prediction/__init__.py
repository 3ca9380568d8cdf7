"""Predictions of many images by a bundle, and pictures of them."""
