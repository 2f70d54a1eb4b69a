"""A page of one's own computer that answers films: `python -m hapre_jax.serve BUNDLE`.

Films are sent to this process alone, are never written to disk, and are forgotten with
the answer. One film is answered at a time; others wait for their turn.
"""

import asyncio
import base64
import errno
import io
import ipaddress
import pathlib
import socket
from typing import Any

import rich.console
from PIL import Image

from hapre_jax import cli, explain, log
from hapre_jax.data import images, inputs
from hapre_jax.errors import UserError
from hapre_jax.serving import answering, inference, serve_page
from hapre_jax.serving.inference import Model

# A film of 4,000 x 5,000 pixels of 16 bits has 40 MB.
MAX_BYTES = 64 * 2**20
_MAX_WAITING = 4  # films in memory at once; others are not read off the network yet
_SENDING_SECONDS = 60  # that a film may take to come
_ENDING_SECONDS = 5  # that requests have left when the program is told to end
_PICTURE = 384  # pixels of a side
_NAMES = ("127.0.0.1", "localhost")  # of this computer, to itself
_ACCEPTED = ("application/octet-stream", "application/dicom", "image/")


def answer(model: Model, name: str, content: bytes) -> dict[str, Any]:
    """What the page shows of a film, of JSON's types.

    Args:
      model: see `inference.load`.
      name: of the film's file.
      content: of the file.

    Raises:
      UserError: it is no film that can be read.
    """
    one = inputs.Input(name, name, lambda: images.open_gray(content, name=name))
    film = answering.read(one, model.config, keep=True)
    if isinstance(film, answering.Refused):
        raise UserError(film.reason)
    (found,) = answering.answer(model, [film], pad_to=1, with_heat=True)
    pictures = {"film": found.draw_area(size=_PICTURE)}
    if found.area is not None and explain.is_of_film(model.config):
        geometry = model.config.data.geometry
        pictures["crop"] = found.crop(size=_PICTURE, geometry=geometry)
    if found.heat is not None:
        pictures["heat"] = found.draw_heat(size=_PICTURE)
    drawn = {kind: _data_url(picture) for kind, picture in pictures.items()}
    return {**found.answer._asdict(), "pictures": drawn}


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def make_app(model: Model, *, hosts: tuple[str, ...] = _NAMES):
    """The ASGI application: `GET /` is the page, `POST /answer` takes a film's bytes.

    Args:
      model: see `inference.load`.
      hosts: names under which it is reached; a page of elsewhere that has a browser
        ask under another name gets nothing.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    page = serve_page.page(model)
    waiting, turn = asyncio.Semaphore(_MAX_WAITING), asyncio.Lock()

    async def show(request):
        del request
        return HTMLResponse(page, headers=serve_page.HEADERS)

    def refuse(status, reason):
        return JSONResponse({"error": reason}, status)

    async def take(request):
        kind = request.headers.get("content-type", "").lower()
        if not kind.startswith(_ACCEPTED):
            return refuse(415, f"content of type {kind!r} is no film")
        too_large = f"the film has more than {MAX_BYTES // 2**20} MiB"
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BYTES:
            return refuse(413, too_large)
        name = request.query_params.get("name", "film")[:200]
        async with waiting:
            content = bytearray()
            try:
                # Who sends nothing must not keep others waiting for ever.
                async with asyncio.timeout(_SENDING_SECONDS):
                    async for part in request.stream():
                        content += part
                        if len(content) > MAX_BYTES:
                            return refuse(413, too_large)
            except TimeoutError:
                return refuse(408, f"{name} did not come in {_SENDING_SECONDS} seconds")
            except ClientDisconnect:
                return refuse(400, f"{name} did not come whole")  # nobody reads it
            if not content:
                return refuse(422, f"{name} is empty")
            async with turn:
                try:
                    found = await asyncio.to_thread(answer, model, name, bytes(content))
                except UserError as error:
                    return refuse(422, str(error))
                except MemoryError:
                    return refuse(507, f"memory does not suffice for {name}")
        return JSONResponse(found)

    async def take_or_end(request):
        try:
            return await take(request)
        except asyncio.CancelledError:  # told to end, it has waited long enough
            return refuse(503, "the program ends")

    return Starlette(
        routes=[
            Route("/", show),
            Route("/answer", take_or_end, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is said before anything loads."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # who asks before the model is ready waits
    except (OSError, UnicodeError) as error:
        listener.close()
        number = getattr(error, "errno", None)
        hint = "; choose another --port" if number == errno.EADDRINUSE else ""
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{host}, port {port}, cannot be listened on: {reason}{hint}"
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python -m hapre_jax.serve",
        description="Show a page on this computer that answers films: drop a film on "
        "it, see its class, key area, crop and where the classifier looks. Films stay "
        "in this computer's memory and are kept nowhere. Needs the extra serve.",
        epilog="Examples:\n"
        "  python -m hapre_jax.serve bundle\n"
        "  python -m hapre_jax.serve runs/phantom --port 9000",
    )
    parser.add_argument("model", type=pathlib.Path, help="a bundle, or a finished run")
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s")
    parser.add_argument(
        "--host", default="127.0.0.1", help="IPv4 address (default %(default)s)"
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="let other computers ask: there is no password and no encryption",
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port <= 65535:
        raise UserError(f"--port is {arguments.port}, but must be from 0 to 65535")
    if not _is_loopback(arguments.host) and not arguments.allow_remote:
        raise UserError(
            f"--host {arguments.host} would let other computers ask, without a "
            "password or encryption; give --allow-remote if that is wanted"
        )
    try:
        import uvicorn
        from starlette.applications import Starlette  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the page needs starlette and uvicorn: pip install 'hapre_jax[serve]'"
        ) from error
    console = rich.console.Console()
    with _listen(arguments.host, arguments.port) as listener:
        with console.status("Loading"):
            model = inference.load(arguments.model)
        hosts = ("*",) if arguments.allow_remote else (arguments.host, *_NAMES)
        host, port = listener.getsockname()
        log.say(console, f"Open http://{host}:{port} in a browser; Ctrl-C ends it.")
        settings = uvicorn.Config(
            make_app(model, hosts=hosts),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_ENDING_SECONDS,
        )
        uvicorn.Server(settings).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    cli.run(main)
