"""Whether what lies between two attentions is one launch or the operations one by one."""

from torch import Tensor

from quire_kernels.dispatch import device
from quire_kernels.dispatch.norm import rms_norm
from quire_kernels.dispatch.projection import gated_linear, linear, linear_add_
from quire_kernels.linear.tuning import BetweenConfig, between_config


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
) -> Tensor:
    """From what a layer attended to, to the next layer's queries, keys and values; ``residual`` goes on in place.

    One launch for few rows of a small model, which rounds as the operations one by one do.
    """
    biased = any(bias is not None for bias in (o_bias, gate_up_bias, down_bias))
    if not biased and (config := _between_config(residual, attended, down, qkv)):
        from quire_kernels.linear.between import between_attentions_rows

        return between_attentions_rows(
            attended,
            residual,
            o=o,
            post_norm=post_norm,
            gate_up=gate_up,
            down=down,
            input_norm=input_norm,
            qkv=qkv,
            qkv_bias=qkv_bias,
            eps=eps,
            config=config,
        )
    linear_add_(residual, attended, o, o_bias)
    gated = gated_linear(rms_norm(residual, post_norm, eps), gate_up, gate_up_bias)
    linear_add_(residual, gated, down, down_bias)
    return linear(rms_norm(residual, input_norm, eps), qkv, qkv_bias)


def _between_config(residual: Tensor, attended: Tensor, down: Tensor, qkv: Tensor) -> BetweenConfig | None:
    if (
        residual.element_size() != 2
        or not device.runs_triton(residual)
        or not device.is_hopper_or_later(residual.device)
    ):
        return None
    if not (residual.is_contiguous() and attended.is_contiguous()):
        return None
    return between_config(
        residual.shape[0],
        heads=attended.shape[1],
        hidden=residual.shape[1],
        inner=down.shape[1],
        outputs=qkv.shape[0],
        num_multiprocessors=device.num_multiprocessors(residual.device),
    )
