"""OpenCLIP's, transformers' and timm's layouts: corresponding tensors."""
