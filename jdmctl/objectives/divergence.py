"""Which distance between teacher and student is descended: f-divergences, by the weight they give a sample.

With r = p / q (teacher over student) and a convex f,

    D_f(p || q) = E_q[ f(r) ],    d D_f / d theta = - E_q[ h(r) (s_teacher - s_fake) dx / d theta ],   h(r) = f''(r) r^2

(Xu et al. 2025, f-distill, arXiv:2502.15681). Reverse KL has h = 1; every other f is reverse KL with a weight on each
sample. Weights are computed from log r, where nothing overflows.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from jdmctl.errors import JdmError

_Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """A generator and its weight. `f` may carry any a + b r: E_q[r] = 1, so only f'' counts."""

    name: str
    f: _Function  # r > 0 -> f(r), any shape
    log_weight: _Function  # log r -> log h(r), same shape
    needs_ratio: bool = True  # False where h is constant


def from_bregman(name: str, b: _Function, log_curvature: _Function, needs_ratio: bool = True) -> Divergence:
    """The f-divergence of a Di-Bregman generator b(u), u = q / p = 1 / r (Zhu et al. 2025, arXiv:2510.16983).

    f(r) = r b(1 / r) gives h(r) = b''(u) u. `log_curvature` maps log u to log b''(u).
    """
    return Divergence(name, lambda r: r * b(1 / r), lambda log_r: log_curvature(-log_r) - log_r, needs_ratio)


def power(a: float) -> _Function:
    """(r^a - a r - (1 - a)) / (a (a - 1)), second derivative r^(a - 2); its limits at a = 0 and 1.

    (Cichocki and Amari 2010, doi:10.3390/e12061532). Written so that nothing cancels near the limits.
    """
    if a == 0:
        return lambda r: r - 1 - r.log()
    if a == 1:
        return lambda r: r * r.log() - r + 1
    if a < 0.5:
        return lambda r: (torch.expm1(a * r.log()) - a * (r - 1)) / (a * (a - 1))
    return lambda r: (r * torch.expm1((a - 1) * r.log()) - (a - 1) * (r - 1)) / (a * (a - 1))


# f(r) and log h of each; the first six are Table 1 of f-distill, which says where they come from.
_FIXED = (
    Divergence("reverse-kl", lambda r: -r.log(), torch.zeros_like, needs_ratio=False),  # h = 1
    Divergence(  # h = 1 / (r + 1)  (Shannon et al. 2020, arXiv:2010.08029)
        "softened-reverse-kl", lambda r: (r + 1) * (0.5 + 0.5 / r).log(), lambda log_r: logsigmoid(-log_r)
    ),
    Divergence(  # h = r / (r + 1)  (Lin 1991, doi:10.1109/18.61115; twice the usual)
        "js", lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(), lambda log_r: logsigmoid(log_r)
    ),
    Divergence("squared-hellinger", lambda r: 1 - r.sqrt(), lambda log_r: log_r / 2 - math.log(4)),  # h = sqrt(r) / 4
    Divergence("forward-kl", lambda r: r * r.log(), lambda log_r: log_r),  # h = r
    Divergence("jeffreys", lambda r: (r - 1) * r.log(), lambda log_r: softplus(log_r)),  # h = r + 1
    Divergence("neyman", lambda r: (1 - r) ** 2 / r, lambda log_r: math.log(2) - log_r),  # h = 2 / r
    Divergence("pearson", lambda r: (r - 1) ** 2, lambda log_r: math.log(2) + 2 * log_r),  # h = 2 r^2
    # Neyman's and Pearson's chi^2: Nowozin et al. 2016, f-GAN, arXiv:1606.00709.
    # Di-Bregman's generators, named after the density-ratio fits they come from (Sugiyama et al. 2012):
    from_bregman(  # b'' = 1 / u, h = 1
        "bregman-kl", lambda u: u * u.log() - u, lambda log_u: -log_u, needs_ratio=False
    ),
    from_bregman(  # b'' = 1 / (u (1 + u)), h = r / (r + 1)
        "bregman-lr", lambda u: u * u.log() - (1 + u) * (1 + u).log(), lambda log_u: -log_u - softplus(log_u)
    ),
    from_bregman("bregman-lsif", lambda u: (u - 1) ** 2 / 2, torch.zeros_like),  # b'' = 1, h = 1 / r
)
_BY_NAME = {divergence.name: divergence for divergence in _FIXED}
_ALIASES = {
    "rkl": "reverse-kl",
    "dmd": "reverse-kl",
    "softened-rkl": "softened-reverse-kl",
    "jensen-shannon": "js",
    "hellinger": "squared-hellinger",
    "fkl": "forward-kl",
}


def _alpha(a: float) -> Divergence:  # h = r^a: reverse KL at 0, 4 times squared Hellinger at 1/2, forward KL at 1
    return Divergence(f"alpha:{a:g}", power(a), lambda log_r: a * log_r, needs_ratio=a != 0)


def _scaled_basu(a: float) -> Divergence:  # b'' = u^(a - 1), h = r^(-a)
    return from_bregman(f"bregman-sba:{a:g}", power(1 + a), lambda log_u: (a - 1) * log_u, needs_ratio=a != 0)


_FAMILIES = {"alpha": _alpha, "bregman-sba": _scaled_basu}


def divergence_names() -> list[str]:
    """All names, without aliases; a family stands with the number that it needs, as in alpha:0.5."""
    return [*_BY_NAME, *(f"{family}:NUMBER" for family in _FAMILIES)]


def aliases(name: str) -> list[str]:
    """Other names of a divergence."""
    return [alias for alias, full in _ALIASES.items() if full == name]


def load_divergence(text: str, others: Sequence[str] = ()) -> Divergence:
    """The divergence of a name such as js, forward-kl or alpha:0.5; case and _ for - do not matter.

    `others` are what hints name too: names that will do where this one was given, without a weight of their own.

    Raises:
        JdmError: there is no such divergence, or a family came without a finite number.
    """
    name, colon, number = text.strip().lower().replace("_", "-").partition(":")
    if name in _FAMILIES:
        return _FAMILIES[name](_number(text, name, number))
    found = _BY_NAME.get(_ALIASES.get(name, name))
    if found is None or colon:
        raise JdmError(f"no divergence is named '{text}'", hint=_suggestion(name, others))
    return found


def _number(text: str, family: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise JdmError(f"the divergence '{text}' needs a number after {family}", hint=f"write it as {family}:0.5")
    return value


def _suggestion(name: str, others: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, [*_BY_NAME, *_ALIASES, *_FAMILIES, *others], n=2)
    choices = " or ".join(f"'{_ALIASES.get(word, word)}'" for word in close)
    return f"did you mean {choices}?" if close else f"there are {', '.join([*divergence_names(), *others])}"
