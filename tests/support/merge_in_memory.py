"""Merge models in memory in one of several processes: ``python -m ... ZEROSHOT FINETUNED OUTPUT``."""

import sys
from datetime import timedelta

import torch
from transformers import CLIPModel

import clipmerge

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    zeroshot, finetuned = map(CLIPModel.from_pretrained, sys.argv[1:3])
    clipmerge.merge(zeroshot, finetuned, "wise-ft", alpha=0.25, output=sys.argv[3])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
