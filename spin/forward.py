from __future__ import annotations
import torch
from torch import Tensor, nn
from spin.packing import pack, one_by_one
from spin.decoder import FastDecoder
from spin.logps import head_logps
class Proto(nn.Module):
    def __init__(self, model, dtype, trim=True, ck=False):
        super().__init__(); self.model=model; self.fast=FastDecoder(model); self.dtype=dtype; self.trim=trim; self.ck=ck
    def forward(self, groups):
        p=pack(groups)
        h=self.fast(p,self.dtype,self.ck,self.trim)
        return head_logps(h[p.predictors], self.model.lm_head.weight, p.labels, p.owners, p.completions, compute_dtype=self.dtype)
