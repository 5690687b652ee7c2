"""Whether what lies between two attentions is one launch, four with the norms folded in, or the operations one by one."""

from torch import Tensor

from quire_kernels.dispatch import device
from quire_kernels.dispatch.projection import add_norm_project_
from quire_kernels.gpu import gluon_module, num_multiprocessors
from quire_kernels.linear.tuning import BetweenConfig, between_config
from quire_kernels.rotary.places import HeadPlaces


def between_attentions(
    residual: Tensor,
    attended: Tensor,
    *,
    o: Tensor,
    o_bias: Tensor | None,
    post_norm: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    input_norm: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    eps: float,
    places: HeadPlaces | None = None,
) -> Tensor:
    """From what a layer attended to, to the next layer's queries, keys and values; ``residual`` goes on in place. What
    ``places``, those of the next layer, do is said of `project_heads`.

    One launch for few rows of a small model on Hopper, which rounds as the operations one by one do. Calls on one device
    must not run at the same time: the programs of a launch wait for each other, and launches share counters.
    """
    biased = any(bias is not None for bias in (o_bias, gate_up_bias, down_bias))
    if not biased and (config := _between_config(residual, attended, down, qkv)):
        kernel = gluon_module("quire_kernels.linear.between")
        operands = {
            "attended": attended,
            "residual": residual,
            "o": o,
            "post_norm": post_norm,
            "gate_up": gate_up,
            "down": down,
            "input_norm": input_norm,
            "qkv": qkv,
            "qkv_bias": qkv_bias,
        }
        if kernel and kernel.misfit(**operands) is None:
            return kernel.between_attentions_rows(**operands, eps=eps, config=config)
    gated = add_norm_project_(
        residual,
        attended,
        o,
        o_bias,
        norm_weight=post_norm,
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
        norm_weight=input_norm,
        eps=eps,
        next_weight=qkv,
        next_bias=qkv_bias,
        places=places,
    )


def _between_config(residual: Tensor, attended: Tensor, down: Tensor, qkv: Tensor) -> BetweenConfig | None:
    """Settings of the one launch, or None: that its programs are there at once, and gain by it, was seen on Hopper alone."""
    if (
        residual.element_size() != 2
        or not device.runs_triton(residual)
        or not device.is_hopper(residual.device)
    ):
        return None
    return between_config(
        residual.shape[0],
        q_size=attended.shape[1],
        hidden_size=residual.shape[1],
        intermediate_size=down.shape[1],
        num_outputs=qkv.shape[0],
        num_multiprocessors=num_multiprocessors(residual.device),
    )
