"""`flambeau deploy` prints what runs an image of a source elsewhere; `flambeau fetch` brings a bundle there."""

import itertools
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from flambeau.bundle.storage import Bundle
from flambeau.cli.options import HELP, SettingsCommand, source_options
from flambeau.cli.terminal import ShowProgress
from flambeau.deploy import fetching, manifests, needs, ray_serve
from flambeau.deploy.manifests import Extra, Fetch, Values
from flambeau.deploy.ray_serve import ServeValues
from flambeau.errors import ConfigError, SourceError
from flambeau.settings.hosts import is_local
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.declarations import declare

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings=HELP)
def deploy() -> None:
    """Print manifests that run an image of SOURCE, for Kubernetes or for compose; or a Ray Serve application.

    Those of images ask for what the build of SOURCE measured: cores, workers, memory. Comments say how each was
    derived.
    """


def _common(command: F) -> F:
    options = (
        source_options,
        click.option("--allow-code", is_flag=True, help="Run code that the source carries, here and in the image."),
        click.option("--image", metavar="NAME", help="Image of SOURCE, made by flambeau package. Default: its name."),
        click.option("--name", metavar="NAME", help="Name of what is deployed. Default: the model's."),
        click.option("--cpu", type=click.IntRange(1), help="Cores of a container. Default: those measured to pay off."),
        click.option("--memory", metavar="SIZE", help="Limit of memory, as in 2Gi. Default: derived."),
        click.option(
            "--drain-timeout", type=click.IntRange(0), default=30, show_default=True, help="As in flambeau serve."
        ),
        click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="File to write it to."),
    )
    for each in reversed(options):
        command = each(command)
    return command


@deploy.command(cls=SettingsCommand, context_settings=HELP)
@_common
@click.option("--namespace", metavar="NAME", help="Namespace. Default: that of kubectl.")
@click.option("--replicas", type=click.IntRange(1), default=2, show_default=True, help="Pods, or the fewest.")
@click.option("--max-replicas", type=click.IntRange(1), default=6, show_default=True, help="Most pods.")
@click.option("--no-autoscaling", is_flag=True, help="Always --replicas pods.")
@click.option("--tokens-secret", metavar="NAME", help="Secret whose key 'tokens' holds a --tokens-file.")
@click.option("--insecure-no-auth", is_flag=True, help="Ask nobody for a token.")
@click.option("--claim", metavar="NAME", help="PersistentVolumeClaim with the bundle, or a repository of models.")
@click.option("--watch", is_flag=True, help="Follow the repository in --claim.")
@click.option("--fetch", "url", metavar="URL", help="Fetch the bundle from there, a tar archive, before the start.")
@click.option("--sha256", metavar="HEX", help="SHA-256 of that archive.")
@click.option(
    "--with",
    "extras",
    multiple=True,
    type=click.Choice(typing.get_args(Extra)),
    help="Add a KEDA ScaledObject, a ServiceMonitor, an Ingress or a Gateway's HTTPRoute; may be repeated.",
)
@click.option("--host", metavar="NAME", help="Host name of the Ingress or the HTTPRoute.")
@click.option("--tls-secret", metavar="NAME", help="TLS certificate of the Ingress. Default: NAME-tls.")
@click.option("--ingress-class", metavar="NAME", help="Class of the Ingress. Default: the cluster's.")
@click.option("--gateway", metavar="NAME", default="gateway", show_default=True, help="Gateway of the HTTPRoute.")
@click.option(
    "--prometheus", metavar="URL", default=Values().prometheus, show_default=True, help="Where KEDA asks for the queue."
)
def kubernetes(
    *, image: str | None, name: str | None, cpu: int | None, memory: str | None, output: Path | None,
    no_autoscaling: bool, insecure_no_auth: bool, url: str | None, sha256: str | None, extras: tuple[Extra, ...],
    host: str | None, tls_secret: str | None, **options: Any,
) -> None:  # fmt: skip
    """Print a Deployment with its Service, autoscaler, disruption budget and network policy.

    \b
      flambeau package my.pth -o image --tag registry.example.org/cats:1 --build
      flambeau deploy kubernetes my.pth --image registry.example.org/cats:1 --tokens-secret cats -o cats.yaml
      kubectl apply -f cats.yaml
    """
    own = {each: options.pop(each) for each in (
        "namespace", "replicas", "max_replicas", "tokens_secret", "claim", "watch", "ingress_class", "gateway",
        "prometheus", "drain_timeout",
    )}  # fmt: skip
    _refuse(
        (own["tokens_secret"] is None) is not insecure_no_auth,
        "the pods would serve everybody who can reach them: name a Secret with --tokens-secret, or say "
        "--insecure-no-auth"
        if own["tokens_secret"] is None
        else "--tokens-secret and --insecure-no-auth exclude each other: leave one out",
    )
    _refuse((url is None) is not (sha256 is None), "--fetch and --sha256 belong together: give both")
    _refuse(url is not None and own["claim"] is not None, "--fetch and --claim exclude each other: leave one out")
    _refuse(bool(own["watch"]) and own["claim"] is None, "--watch follows the repository of --claim: name one")
    _refuse({"ingress", "gateway"} & {*extras} and host is None, "an Ingress or HTTPRoute needs a --host")
    _refuse("keda" in extras and no_autoscaling, "--with keda scales, and --no-autoscaling forbids it: leave one out")
    _refuse(own["replicas"] > own["max_replicas"], f"--replicas {own['replicas']} are more than --max-replicas")
    model, found = _measured(options, cpu, volume=own["claim"], flag="--claim")
    values = _values(model, found, image=image, name=name, memory=memory, allow_code=options["allow_code"])
    values = replace(
        values,
        **own,
        scaling="none" if no_autoscaling else "keda" if "keda" in extras else "cpu",
        fetch=Fetch(url, sha256) if url is not None and sha256 is not None else None,
        host=host or values.host,
        tls_secret=tls_secret or f"{values.name}-tls",
    )
    objects = manifests.kubernetes(values, extras)
    _print(model, found, "---\n".join(objects.values()), output)


@deploy.command(cls=SettingsCommand, context_settings=HELP)
@_common
@click.option("--tokens", is_flag=True, help="Take FLAMBEAU_TOKEN and FLAMBEAU_ADMIN_TOKEN from compose's environment.")
@click.option("--folder", metavar="DIR", help="Mount this bundle or repository in the place of the image's own.")
@click.option("--watch", is_flag=True, help="Follow the repository in --folder.")
def compose(
    *, image: str | None, name: str | None, cpu: int | None, memory: str | None, output: Path | None, tokens: bool,
    folder: str | None, watch: bool, drain_timeout: int, **options: Any,
) -> None:  # fmt: skip
    """Print a compose file with one service, which listens on this machine's port 5000.

    That with Prometheus, Grafana and nginx is deploy/compose.yaml of the repository.

    \b
      flambeau deploy compose my.pth --image cats -o compose.yaml && docker compose up
    """
    _refuse(watch and folder is None, "--watch follows the repository of --folder: name one")
    model, found = _measured(options, cpu, volume=folder, flag="--folder")
    values = _values(model, found, image=image, name=name, memory=memory, allow_code=options["allow_code"])
    values = replace(values, claim=folder, watch=watch, tokens_variables=tokens, drain_timeout=drain_timeout)
    _print(model, found, manifests.compose(values, stack=False), output)


@deploy.command(context_settings=HELP)
@click.argument("source")
@click.option("--name", metavar="NAME", help="Name of the application. Default: that of the folder.")
@click.option(
    "--fronts", type=click.IntRange(1), default=1, show_default=True, help="Fronts, at most one on each node."
)
@click.option("--replicas", type=click.IntRange(1), default=2, show_default=True, help="Replicas of each front.")
@click.option("--min-replicas", type=click.IntRange(1), help="Fewest: more, up to --replicas, while requests wait.")
@click.option("--ray-num-gpus", type=click.FloatRange(0), default=0.0, help="GPUs that Ray reserves for each replica.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that each node's proxy listens on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Its port.")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Port for gRPC, on all addresses. Default: no gRPC.")
@click.option("--tokens-file", metavar="FILE", help="As in flambeau serve; a path on every node.")
@click.option("--insecure-no-auth", is_flag=True, help="Ask nobody for a token.")
@click.option("--allow-code", is_flag=True, help="Run code that the source carries.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="File to write it to.")
def ray(
    *, source: str, name: str | None, fronts: int, replicas: int, min_replicas: int | None, ray_num_gpus: float,
    host: str, port: int, grpc_port: int | None, tokens_file: str | None, insecure_no_auth: bool, allow_code: bool,
    output: Path | None,
) -> None:  # fmt: skip
    """Print the configuration of a Ray Serve application.

    SOURCE is a bundle or a repository that every node sees, or the address of a bundle, such as s3://models/cats.

    \b
      flambeau build my.pth -o /shared/cats
      flambeau deploy ray /shared/cats --fronts 3 --host 0.0.0.0 --tokens-file /shared/tokens -o serve.yaml
      serve deploy serve.yaml
    """
    _refuse(
        (grpc_port or not is_local(host)) and (tokens_file is None) is not insecure_no_auth,
        "the fronts would serve everybody who can reach them: name a --tokens-file, or say --insecure-no-auth"
        if tokens_file is None
        else "--tokens-file and --insecure-no-auth exclude each other: leave one out",
    )
    _refuse(grpc_port == port, f"--grpc-port {grpc_port} is also --port: HTTP and gRPC need a port each")
    _refuse((min_replicas or 1) > replicas, f"--min-replicas {min_replicas} are more than the {replicas} of --replicas")
    place = ray_serve.place_of(source)
    values = ServeValues(
        place,
        name or Path(place).name,
        fronts,
        replicas,
        min_replicas,
        host,
        port,
        grpc_port,
        tokens_file,
        allow_code,
        ray_num_gpus,
    )
    _write(ray_serve.serve_config(values), output)


def _refuse(wrong: object, why: str) -> None:
    if wrong:
        raise ConfigError(why)


def _measured(options: dict[str, Any], cpu: int | None, *, volume: str | None, flag: str) -> tuple[str, needs.Needs]:
    """The name of what SOURCE is, and what it needs: a bundle, or the repository that will lie on the `volume`."""
    source = SourceOptions(**options)
    models = declare([source.source], source) if source.source else None
    if models is None:
        bundle = _opened(source)
        return bundle.manifest.name, needs.of_bundle(bundle, cpu=cpu)
    _refuse(volume is None, f"an image has one model, and {source.source} is a repository: name its volume with {flag}")
    wanted = [version for model in models for version in model.wanted()]
    for version in wanted:
        _refuse(version.fault, f"version {version.version} of {version.name} cannot be opened: {version.fault}")
    return Path(str(source.source)).resolve().name, needs.of_repository(
        [_opened(version.source) for version in wanted], cpu=cpu
    )


def _opened(source: SourceOptions) -> Bundle:
    progress = ShowProgress()
    try:
        return build_cache.open_source(source, progress=progress)
    finally:
        progress.done()


def _values(
    of: str, found: needs.Needs, *, image: str | None, name: str | None, memory: str | None, allow_code: bool
) -> Values:
    model = manifests.resource_name(of)
    values = manifests.with_needs(Values(name=name or model, image=image or model, allow_code=allow_code), found)
    if memory is None:
        return values
    least = min(manifests.in_mib(memory), manifests.in_mib(values.memory_request))
    return replace(values, memory_limit=memory, memory_request=f"{least}Mi")


def _print(model: str, found: needs.Needs, text: str, output: Path | None) -> None:
    lines = (f"{model}, as flambeau deploy made it", *found.because)
    _write("".join(itertools.chain((f"# {line}\n" for line in lines), (text,))), output)


def _write(whole: str, output: Path | None) -> None:
    if output is None:
        click.echo(whole, nl=False)
        return
    try:
        output.write_text(whole)
    except OSError as error:
        raise SourceError(f"{output} cannot be written ({error.strerror}): name another file with -o") from error


@click.command()
@click.argument("url")
@click.option("--sha256", required=True, metavar="HEX", help="SHA-256 of the archive.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="New folder.")
@click.option("--allow-code", is_flag=True, help="Take a bundle that carries code, too.")
def fetch(url: str, *, sha256: str, output: Path, allow_code: bool) -> None:
    """Fetch a bundle in a tar archive from URL, verify the archive's SHA-256, and unpack it into DIR.

    For init containers. Every file of the bundle is verified, too. A folder that is there already is kept if it was
    fetched from an archive with the same SHA-256.
    """
    click.echo(fetching.fetch(url, output, sha256=sha256, allow_code=allow_code))
