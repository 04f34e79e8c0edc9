"""Stage ``fit_quantizer``: moments -> quantizer, with its report and pictures."""

from pathlib import Path

import torch

from tokenbridge.base.figures import levels_figure, order_figure
from tokenbridge.base.files import write_csv, write_json
from tokenbridge.stages.context import StageContext, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.tokenizer.fitting import fit_quantizer, quantizer_report
from tokenbridge.tokenizer.latents import Quantizer, low_frequency_share
from tokenbridge.tokenizer.moments import Moments, fitting_latents
from tokenbridge.vae.vector_quantization import load_codebook


def main() -> None:
    with stage_run("fit_quantizer") as run:
        compute(run, work, alone=True)
        run.publish(run.work / "report.json", "reports/quantizer.json")
        run.publish(run.work / "plots", "reports/quantizer")
        run.publish(run.work / "quantizer", "models/quantizer")


def work(context: StageContext) -> None:
    """Write ``quantizer``, ``report.json`` and the folder ``plots``."""
    moments = Moments(context.root / "data/moments")
    vae_latents = fitting_latents(moments, context.config.quantizer.fit_images, context.config.seed)
    trained = load_codebook(context.root / "models/vae")
    quantizer = fit_quantizer(vae_latents, context.config.quantizer, trained)
    quantizer.save_pretrained(context.work / "quantizer")
    rows = quantizer_report(quantizer, vae_latents)
    write_json(context.work / "report.json", _summary(rows))
    plots = context.work / "plots"
    plots.mkdir(exist_ok=True)
    write_csv(plots / "dimensions.csv", rows)
    _draw(quantizer, vae_latents, plots)


def _summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return means over dimensions, and the sum of their entropies as the bits of one token: what the family has."""
    averaged = [name for name in ("mse", "sqnr_db", "bits_above_bound", "saturation") if name in rows[0]]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in averaged}
    bits = [row["entropy_bits"] for row in rows if "entropy_bits" in row]
    return means | ({"entropy_bits_per_token": sum(bits)} if bits else {})


def _draw(quantizer: Quantizer, vae_latents: torch.Tensor, folder: Path) -> None:
    latents = quantizer.normalize(vae_latents)
    columns = latents.transpose(0, 1).flatten(1).numpy()
    levels_figure(columns, quantizer.values.numpy()).savefig(folder / "levels.png")
    share = low_frequency_share(latents)
    order_figure(latents.numpy(), share.numpy(), quantizer.dimension_order.numpy()).savefig(folder / "order.png")
