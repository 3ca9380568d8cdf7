"""Plans U-Nets for medical segmentation by the rules of nnU-Net (arXiv:1809.10486), as MONAI bundles."""

__version__ = "0.1.0"
