"""The ``tokenbridge`` command."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from tokenbridge.base.imports import quick_imports
from tokenbridge.base.program import program
from tokenbridge.config import Config
from tokenbridge.config.model import GUIDANCE_SCHEDULES, GUIDED, REVEAL_ORDERS, SamplingSettings
from tokenbridge.config.project import enter_project, find_project, here
from tokenbridge.config.types import Integer
from tokenbridge.infra.storage import cli as storage
from tokenbridge.ops.planning import cli as planning
from tokenbridge.ops.promotion import cli as promotion
from tokenbridge.ops.runs.study import STUDIES

if TYPE_CHECKING:  # torch is slow to import, and most commands do not need it
    from _typeshed import DataclassInstance

LONGEST = 300  # characters of a message about the arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Every error ends with one line."""
    with program("tokenbridge"):
        options = build_parser().parse_args(arguments)
        enter_project()
        options.command(options)


class Parser(argparse.ArgumentParser):
    """A parser whose errors do not repeat a long argument in full."""

    def error(self, message: str) -> NoReturn:
        super().error(message[:LONGEST])


def number(kind: Any) -> Callable[[str], Any]:
    """Return a reader of an argument that must be a number of a type of ``tokenbridge.config.types``."""
    adapter = TypeAdapter(kind)

    def read(text: str) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(f"{text[:20]!r}: {error.errors()[0]['msg']}") from error

    return read


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser: argparse.ArgumentParser = Parser(prog="tokenbridge", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    params = commands.add_parser("params", help="compose params.yaml from conf/")
    params.add_argument("overrides", nargs="*", help="Hydra overrides, such as experiment=smoke train.epochs=2")
    params.set_defaults(command=_params)

    repro = commands.add_parser("repro", help="run what changed (dvc repro) and record it in MLflow")
    repro.add_argument("overrides", nargs="*", help="Hydra overrides; none: params.yaml as it is")
    repro.set_defaults(command=_repro)

    reproduce = commands.add_parser("reproduce", help="rebuild a run from its id in MLflow, beside your own files")
    reproduce.add_argument("run_id", help="of a `pipeline` run, or of a stage in it")
    reproduce.add_argument("--recompute", action="store_true", help="run every stage again and compare")
    reproduce.add_argument("--trust", action="store_true", help="let --recompute execute the run's uncommitted changes")
    reproduce.set_defaults(command=_reproduce)

    sample = commands.add_parser("sample", help="generate a picture from a trained model")
    sample.add_argument("--class", dest="classes", action="append", help="name or index; repeat for more; none: all")
    _add_drawing(sample, 16, "images of each class", "samples.png")
    sample.set_defaults(command=_sample)

    edit = commands.add_parser("edit", help="draw part of a picture again, or change its class")
    edit.add_argument("--image", dest="images", type=here, action="append", required=True, help="repeat for more")
    kept = edit.add_mutually_exclusive_group(required=True)
    kept.add_argument("--mask", dest="keep", type=here, help="picture that is white where the image is drawn again")
    kept.add_argument("--keep", metavar="SIDE", help="keep the left, right, top or bottom half")
    edit.add_argument("--class", dest="label", required=True, help="name or index; may differ from the image's own")
    _add_drawing(edit, 4, "edits of each image", "edits.png")
    edit.set_defaults(command=_edit)

    _add_import(commands.add_parser("import", help="make a folder of ours from released weights"))

    _add_export(commands)

    for study in STUDIES:
        command = commands.add_parser(study.command, help=f"run {study.experiments}/ into the table of {study.page}")
        command.add_argument("names", nargs="*", help="which; none: all")
        command.add_argument(
            "--seeds", type=number(Integer), nargs="+", default=[0], help="of the trainings (%(default)s)"
        )
        command.set_defaults(command=_study, study=study)

    planning.add_commands(commands)
    promotion.add_commands(commands)
    storage.add_commands(commands)

    ui = commands.add_parser("ui", help="open the MLflow pages on this machine")
    ui.set_defaults(command=_ui)
    return parser


def _add_drawing(parser: argparse.ArgumentParser, count: int, counted: str, out: str) -> None:
    """Add the model, what to draw, and the fields of SamplingSettings.

    SamplingSettings holds the defaults of its fields; fields that are not given stay unset.
    """
    parser.add_argument("--model", type=here, default=Path("models/tiny"), help="pipeline folder (%(default)s)")
    parser.add_argument("--count", type=number(Integer), default=count, help=f"{counted} (%(default)s)")
    parser.add_argument("--out", type=here, default=out, help="PNG, JPEG or WebP (%(default)s)")
    parser.add_argument("--seed", type=number(Integer), default=0)
    group = parser.add_argument_group("sampling", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--steps",
        type=int,
        help="at most one for each position to draw; default: 16 or fewer, or as many as a raster model needs",
    )
    group.add_argument("--guidance-scale", type=float, help="1: no guidance; default: 2")
    group.add_argument("--guidance-schedule", choices=GUIDANCE_SCHEDULES, help="default: linear")
    group.add_argument("--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"), help="default: 0 1")
    group.add_argument("--guidance-refresh", type=int, help="guided steps per unconditional half; default: 1")
    group.add_argument(
        "--guidance-on",
        choices=GUIDED,
        help="guidance mixes the features of a position, or the output of the head; default: features",
    )
    group.add_argument("--temperature", type=float, help="0 takes the likeliest level; default: 1")
    group.add_argument("--top-p", type=float, help="draw among the likeliest levels of this probability; default: 1")
    group.add_argument(
        "--order",
        choices=REVEAL_ORDERS,
        help="which positions come first; default: the order of the model, random for most",
    )
    group.add_argument("--speculative", action="store_true", help="draft all slots of a token at once; default: off")


def _add_import(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="kind")

    model = kinds.add_parser("tokenbridge", help="a TokenBridge checkpoint, as a pipeline folder")
    model.add_argument("checkpoint", type=here, help=".pth of the released code, or a state dict in .safetensors")
    model.add_argument("--out", type=here, required=True, help="folder to write")
    model.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged or not (%(default)s)")
    model.add_argument("--vae", type=here, help="diffusers folder of its VAE; default: the vae.pretrained of conf/")
    model.add_argument("--label-names", type=here, metavar="FILE", help="a class name in each line; default: numbers")
    shape = model.add_argument_group(
        "what the tensors' shapes do not show",
        "Default: as in conf/experiment/imagenet_l, the released models' settings.",
        argument_default=argparse.SUPPRESS,
    )
    shape.add_argument("--heads", type=int, help="of the encoder and the decoder")
    shape.add_argument("--image-size", type=int, help="pixels")
    shape.add_argument("--vae-stride", type=int, help="pixels for each position of the VAE, along one side")
    shape.add_argument("--patch-size", type=int, help="positions of the VAE for each of the model, along one side")
    shape.add_argument("--range", type=float, help="the levels cover scaled latents in [-range, range]")
    shape.add_argument("--latent-scale", type=float, help="what the VAE's latents were multiplied by")
    shape.add_argument("--dimension-order", type=_integers, metavar="8,1,...", help="predicted first, second, ...")
    model.set_defaults(command=_import_tokenbridge)

    vae = kinds.add_parser("vae", help="MAR's KL-16, as a diffusers folder")
    vae.add_argument("checkpoint", type=here, help="kl16.ckpt")
    vae.add_argument("--out", type=here, required=True, help="folder to write")
    vae.set_defaults(command=_import_vae)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    resize = commands.add_parser("resize", help="make a pipeline for another image size")
    resize.add_argument("folder", type=here, help="pipeline folder")
    resize.add_argument("--image-size", type=number(Integer), required=True, help="pixels")
    resize.add_argument("--out", type=here, required=True, help="folder to write")
    resize.set_defaults(command=_resize)

    export = commands.add_parser("export", help="copy a trained model into a folder with a model card")
    export.add_argument("model", help="its key in params.yaml, such as tiny")
    export.add_argument("--out", type=here, required=True, help="folder to write")
    export.add_argument(
        "--checkpoint", action="store_true", help="the newest checkpoint of a training that has not ended"
    )
    export.set_defaults(command=_export)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _params(options: argparse.Namespace) -> None:
    from tokenbridge.config.params import write_params

    write_params(options.overrides)
    print("params.yaml written; `dvc status` lists the stages that it changes")


def _repro(options: argparse.Namespace) -> None:
    from tokenbridge.base.subprocesses import StageFailedError
    from tokenbridge.infra.tracking.process import MLflowProcess

    with MLflowProcess("tokenbridge.ops.promotion.registration") as mlflow:  # first, because both import for seconds
        with quick_imports():
            from tokenbridge.ops.runs.pipeline_run import run_pipeline
        try:
            run_pipeline(find_project(), options.overrides, mlflow)
        except StageFailedError:
            sys.exit("tokenbridge: the pipeline stopped at the stage above: fix what its message says, then repeat")


def _reproduce(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.runs.reproduction import report, reproduce_run

    result = reproduce_run(find_project(), options.run_id, options.recompute, trust=options.trust)
    print(f"\n{report(result)}")
    if not result.equal:
        sys.exit(1)


def _sample(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.serving.draw import write_grid

    settings = _sampling_settings(options)
    write_grid(options.model, options.classes, options.count, options.out, seed=options.seed, settings=settings)


def _edit(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.serving.edit import draw_edits

    draw_edits(
        options.model,
        options.images,
        options.keep,
        options.label,
        options.count,
        options.out,
        seed=options.seed,
        settings=_sampling_settings(options),
    )


def _sampling_settings(options: argparse.Namespace) -> SamplingSettings:
    return SamplingSettings(**_given(options, SamplingSettings))


def _given(options: argparse.Namespace, settings: "type[DataclassInstance]") -> dict[str, Any]:
    """Return the fields of ``settings`` that were given on the command line."""
    names = [field.name for field in fields(settings)]
    return {name: value for name, value in vars(options).items() if name in names}


def _import_tokenbridge(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.exchange.tokenbridge_checkpoint import CheckpointSettings, import_tokenbridge

    released = _released_config()
    settings = replace(CheckpointSettings.of(released), **_given(options, CheckpointSettings))
    vae = options.vae or Path(str(released.vae.pretrained))
    import_tokenbridge(
        options.checkpoint, options.out, vae, settings, weights=options.weights, label_names=options.label_names
    )
    print(f"{options.out} written: `tokenbridge sample --model {options.out}` draws with it")


def _import_vae(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.exchange.kl16 import import_vae

    import_vae(options.checkpoint, options.out, _released_config())
    print(f"{options.out} written: `tokenbridge repro vae=kl16 vae.pretrained={options.out}` takes it")


def _resize(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.exchange.resize import resize_pipeline

    resize_pipeline(options.folder, options.image_size, options.out)
    print(f"{options.out} written: `tokenbridge sample --model {options.out}` draws with it")


def _released_config() -> Config:
    """Return the settings of the released models, which are defined only in conf/experiment/imagenet_l."""
    from tokenbridge.config.params import compose_config, validate

    return validate(compose_config(["experiment=imagenet_l"]))


def _export(options: argparse.Namespace) -> None:
    if options.checkpoint:
        with quick_imports():
            from tokenbridge.ops.exchange.checkpoint_export import export_checkpoint

        export_checkpoint(find_project(), options.model, options.out)
        print(f"{options.out} written: `tokenbridge sample --model {options.out}` draws with it")
        return
    with quick_imports():
        from tokenbridge.ops.exchange.export import export_model

    export_model(find_project(), options.model, options.out)
    print(f"{options.out} written; its README.md is the model card")


def _study(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.runs.costs import run_with_costs
        from tokenbridge.ops.runs.studies import run_study

    run = run_with_costs if options.study.costs else run_study
    run(find_project(), options.study, options.names, options.seeds)


def _ui(_: argparse.Namespace) -> None:
    from tokenbridge.infra.tracking.store import ui_command, ui_link

    root = find_project()
    link, command = ui_link(root), ui_command(root)
    print(f"MLflow: {link}" + ("  (stop with Ctrl-C)" if command else ""), flush=True)
    if command:
        os.execv(command[0], command)


if __name__ == "__main__":
    main()
