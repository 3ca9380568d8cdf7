"""Plans U-Nets for medical segmentation by the rules of nnU-Net (arXiv:1809.10486), as MONAI bundles."""

import logging
import warnings

# Where pydicom is installed, MONAI would say at each start that a decoder for GPUs is not.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")

__version__ = "0.1.0"
