"""What lies between two attentions: four products, and two norms that are folded into them where ours are."""

from torch import Tensor

from quire_kernels.dispatch.projection import add_norm_project_
from quire_kernels.rotary.places import HeadPlaces


def between_attentions(
    residual: Tensor,
    attended: Tensor,
    *,
    o: Tensor,
    o_bias: Tensor | None,
    gate_up: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    eps: float,
    places: HeadPlaces | None = None,
) -> Tensor:
    """From what a layer attended to, to the next layer's queries, keys and values; ``residual`` goes on in place. Weights of the
    norms must be in ``gate_up`` and ``qkv``. What ``places``, those of the next layer, do is said of `project_heads`.

    Calls on one device must not run at the same time: launches share counters.
    """
    gated = add_norm_project_(
        residual,
        attended,
        o,
        o_bias,
        eps=eps,
        next_weight=gate_up,
        next_bias=gate_up_bias,
        gated=True,
    )
    return add_norm_project_(
        residual,
        gated,
        down,
        down_bias,
        eps=eps,
        next_weight=qkv,
        next_bias=qkv_bias,
        places=places,
    )
