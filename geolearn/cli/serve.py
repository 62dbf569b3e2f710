"""geolearn serve: a model behind HTTP, with a page to try it on."""

import argparse
import ipaddress
import socket

from geolearn.cli.arguments import check_model, number, whole
from geolearn.cli.messages import say

LIBRARIES = ('fastapi', 'uvicorn', 'python_multipart', 'rio_tiler')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('model', help='the .dlpk')
    parser.add_argument(
        '--allow',
        action='append',
        default=[],
        metavar='FOLDER',
        help='let clients name GeoTIFFs in this folder and those below it; may be given several times',
    )
    network = parser.add_argument_group('the network')
    network.add_argument('--host', default='127.0.0.1', help='address to listen at')
    network.add_argument('--port', type=whole(0), default=8000, help='port to listen at')
    network.add_argument(
        '--allow-remote', action='store_true', help='listen at an address that other machines reach, without a password'
    )
    work = parser.add_argument_group('the work')
    work.add_argument('--workers', type=whole(1), default=1, help='jobs that run at a time; each loads the model')
    work.add_argument('--device', help='torch device; CUDA where there is one')
    limits = parser.add_argument_group('limits')
    limits.add_argument('--max-megabytes', type=number(0, above=True), default=2048.0, help='of an upload')
    limits.add_argument('--max-megapixels', type=number(0, above=True), default=400.0, help='of a raster')
    limits.add_argument('--max-waiting', type=whole(1), default=8, help='jobs that wait; more are refused')
    limits.add_argument('--keep', type=number(0, above=True), default=60.0, help='minutes that results are kept')
    parser.set_defaults(run=run, inputs=('allow',), when_interrupted='stopped')


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted, as by Ctrl+C."""
    check_arguments(arguments)
    from geolearn import extras

    for library in LIBRARIES:
        extras.require(library, extra='serve', to='serve models')
    import uvicorn

    from geolearn.device import choose_device
    from geolearn.models import load_model
    from geolearn.serve.app import LOOPBACK, make_app
    from geolearn.serve.rasters import Limits

    choose_device(arguments.device)
    limits = Limits(
        upload_bytes=round(arguments.max_megabytes * 1e6),
        pixels=round(arguments.max_megapixels * 1e6),
        waiting=arguments.max_waiting,
        keep_seconds=60 * arguments.keep,
    )
    local = is_loopback(arguments.host)
    app = make_app(
        [load_model(arguments.model) for _ in range(arguments.workers)],
        limits=limits,
        folders=arguments.allow,
        hosts=LOOPBACK if local else None,
        device=arguments.device,
    )
    if not local:
        say(
            f'warning: whoever reaches {arguments.host}:{arguments.port} can use this model and read the files in '
            'allowed folders; there is no password and no encryption'
        )
    config = uvicorn.Config(app, log_level='warning', server_header=False, limit_concurrency=64, ws='none')
    with listen(arguments.host, arguments.port) as opened:
        host, port = opened.getsockname()[:2]
        shown = f'[{host}]' if ':' in host else host
        print(f'serving {arguments.model} at http://{shown}:{port}; stop with Ctrl+C', flush=True)
        uvicorn.Server(config).run(sockets=[opened])


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that the server listens at.

    Raises:
        ValueError: If the address is not one of this machine, or the port is taken.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f'cannot listen at {host}, port {port}: {error.strerror}; choose another --port') from error


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be served, before torch is imported.

    Raises:
        ValueError: If other machines would reach the server and nobody asked for that.
    """
    if arguments.port > 65535:
        raise ValueError(f'--port must be at most 65535, got {arguments.port}')
    if not is_loopback(arguments.host) and not arguments.allow_remote:
        raise ValueError(
            f'--host {arguments.host} may be reached from other machines; add --allow-remote if that is wanted, or '
            'leave --host out'
        )
    check_model(arguments.model)


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
