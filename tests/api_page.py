"""docs/api.md out of the docstrings: `python -m tests.api_page` writes it, and a test holds it to them."""

import importlib
import inspect
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
#: Module -> its public names, in the order of the page.
PUBLIC = {
    "repro": ("load", "sample", "grid"),
    "repro.adapters": ("from_diffusers", "from_epsilon", "from_v", "from_x0", "from_flow", "null_class"),
    "repro.adapters.parameterisations": ("Adapted", "VariancePreserving", "Flow"),
    "repro.degradations": ("degrade", "seed_degradations", "DEGRADATIONS"),
    "repro.guidance": ("combine", "Blend", "guided_steps", "step_weights", "apg", "rescaled", "RULES", "RAMPS"),
    "repro.schedules": ("edm", "optimal", "grid_levels", "step_errors", "cheapest"),
    "repro.sampler": ("sample", "draw_inputs", "SeedStreams"),
    "repro.networks": ("Denoiser", "Precond"),
    "repro.snapshots": ("load", "save", "Snapshot"),
    "repro.encoders": ("RGBEncoder", "StabilityVAEEncoder"),
    "repro.ema": (
        *("std_to_gamma", "gamma_to_std", "beta", "correlation", "solve_coefficients"),
        *("PowerFunctionEMA", "reconstruct"),
    ),
    "repro.training": ("EDM2Loss", "learning_rate"),
    "repro.data": ("center_crop_dhariwal",),
    "metrics": ("evaluate", "evaluate_sets", "compare", "Evaluator", "Extractor", "Options"),
    "metrics.detectors": ("load",),
    "metrics.statistics": ("Moments", "Statistics", "load", "save"),
    "metrics.vendi": ("vendi_score",),
    "metrics.memorisation": ("authentic", "authentic_percentage", "data_copying"),
    "metrics.adm": ("adm_precision_recall",),
    "metrics.neighbours": ("neighbour_metrics", "nearest"),
    "metrics.frechet": ("frechet_distance", "frechet_with_error", "paired_difference", "fd_infinity"),
    "metrics.kernel": ("kernel_distance", "unbiased_mmd2"),
}


def page() -> str:
    """The page's text."""
    parts = [
        "# Public names of both packages\n",
        "Out of the docstrings, by `python -m tests.api_page`. Arrays are written [axes]; errors that a user can mend\n"
        "are `metrics.errors.InputError`.\n",
    ]
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        parts.append(f"## `{module_name}`\n\n{(inspect.getdoc(module) or '').splitlines()[0]}\n")
        for name in names:
            found = getattr(module, name)
            if not callable(found):
                parts.append(f"### `{name}`\n\n{', '.join(f'`{key}`' for key in found)}\n")
                continue
            text = inspect.getdoc(found)
            assert text, f"{module_name}.{name} has no docstring"
            parts.append(f"### `{name}`\n\n```text\n{name}{_signature(found)}\n\n{text}\n```\n")
    return "\n".join(parts)


def _signature(found: object) -> str:
    parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    shown = [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters if p.name != "self"]
    return re.sub(r"<[^>]* at 0x[^>]*>", "...", f"({', '.join(shown)})")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
