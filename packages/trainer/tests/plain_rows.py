"""Row kernels in plain torch that record their calls, in place of a compiled library."""

from __future__ import annotations

import torch
from torch import Tensor


class PlainRows:
    def __init__(self, serving: bool = True) -> None:
        self.serving, self.calls = serving, list[str]()

    def serves(self, *tensors: Tensor) -> bool:
        return self.serving

    def softmax_(
        self, scores_URS: Tensor, mask: Tensor | None, scale: float, length: int, heads: int
    ) -> Tensor:
        self.calls.append("softmax_")
        assert scores_URS.is_contiguous()
        scores = scores_URS.float().mul_(scale).view(-1, heads, length, scores_URS.shape[-1])
        return scores_URS.copy_(
            torch.softmax(scores if mask is None else scores + mask, -1).view(scores_URS.shape)
        )

    def softmax_gradient_(self, grad_URS: Tensor, shares_URS: Tensor, scale: float) -> Tensor:
        self.calls.append("softmax_gradient_")
        assert grad_URS.is_contiguous() and shares_URS.is_contiguous()
        grad, shares = grad_URS.float(), shares_URS.float()
        return grad_URS.copy_((grad - (grad * shares).sum(-1, keepdim=True)) * shares * scale)

    def rotate(self, x_BHTD: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
        self.calls.append("back" if back else "rotate")
        cosine, sine = cosine[:, None], sine[:, None]
        if back:
            first, second = (x_BHTD * sine).chunk(2, -1)
            return x_BHTD * cosine + torch.cat([second, -first], -1)
        first, second = x_BHTD.chunk(2, -1)
        return x_BHTD * cosine + torch.cat([-second, first], -1) * sine
