"""The HTTP interface: upload or name a raster, follow its job, fetch the map or the objects, look at both on a page."""

import asyncio
import importlib.resources
import logging
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Body, FastAPI, Query, Request
from fastapi import Path as UrlPath
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geolearn._version import __version__
from geolearn.errors import GeoLearnError, RasterError
from geolearn.models import Model
from geolearn.serve.jobs import INTERNAL, Job, JobQueue, State, Work
from geolearn.serve.options import NamedRasters, Options
from geolearn.serve.rasters import (
    Limits,
    RefusedError,
    as_shown_to_clients,
    check_file_name,
    check_raster,
    find_named,
    resolve_folders,
)
from geolearn.serve.tiles import ImageTiles, MapTiles, ramp_colors

log = logging.getLogger('geolearn')

LOOPBACK = ('127.0.0.1', 'localhost', '::1')

TIFF_TYPES = ('image/tiff', 'image/geotiff', 'application/geotiff', 'application/octet-stream')

_TEXT_BYTES = 64 * 1024
"""Of bodies that hold no raster."""

_FORM_BYTES = 64 * 1024
"""Of a form, beside its files."""

_PAGES = {
    'page.js': 'text/javascript',
    'page.css': 'text/css',
    'maplibre-gl.js': 'text/javascript',
    'maplibre-gl.css': 'text/css',
}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self' blob:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the page: nothing comes from another host. MapLibre starts its workers from blobs."""


class JobStatus(BaseModel):
    """Where a job is."""

    id: str = Field(examples=['4f6c1f0b9a'])
    state: State
    progress: float = Field(description='share that is done, 0 to 1', examples=[0.4])
    seconds_left: float | None = Field(None, description='estimate, while the job runs')
    message: str = Field('', description='why a job failed')
    rasters: list[str] = Field(examples=[['scene.tif']])
    result: str | None = Field(None, description='where to fetch the result', examples=['/jobs/4f6c1f0b9a/result'])


class Problem(BaseModel):
    """Why a request is not served."""

    error: str = Field(examples=['scene.tif is a zip archive; send a GeoTIFF'])


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {'model': Problem, 'description': text}
    for status, text in {
        403: 'outside the allowed folders, or from a page of another site',
        404: 'no such job, file or tile',
        409: 'the job has no result (yet)',
        413: 'more bytes or pixels than the server takes',
        415: 'not a GeoTIFF',
        422: 'the raster or the options do not fit the model',
        503: 'all places in the queue are taken',
    }.items()
}

_UPLOAD = {
    'requestBody': {
        'required': True,
        'description': 'A GeoTIFF as the body; or a form with a `file`, or with several: one for each date; its other '
        'fields are the options.',
        'content': {
            'image/tiff': {'schema': {'type': 'string', 'format': 'binary'}},
            'multipart/form-data': {
                'schema': {
                    'type': 'object',
                    'required': ['file'],
                    'properties': {'file': {'type': 'array', 'items': {'type': 'string', 'format': 'binary'}}}
                    | {name: {'type': 'string'} for name in Options.model_fields},
                }
            },
        },
    }
}


class _Gate:
    """Limits bodies, and turns away pages of other sites: a browser would let them use a server on this machine.

    Args:
        app: What is behind.
        upload_bytes: Of the rasters of a request.
        hosts: Names under which the server may be asked; None allows any.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int, hosts: Sequence[str] | None) -> None:
        self._app, self._upload_bytes, self._hosts = app, upload_bytes, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        uploads = scope['path'] in ('/jobs', '/predict')
        form = headers.get('content-type', '').startswith('multipart/')
        limit = self._upload_bytes + (_FORM_BYTES if form else 0) if uploads else _TEXT_BYTES
        refused = self._refuse(headers, limit)
        if refused is not None:
            await _answer(refused)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get('body', b''))
            if taken > limit:
                raise _too_large(limit)
            return message

        async def hardened(message: Message) -> None:
            if message['type'] == 'http.response.start':
                extra = {'x-content-type-options': 'nosniff', 'cross-origin-resource-policy': 'same-origin'}
                message['headers'] = [*message['headers'], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        await self._app(scope, counted, hardened)

    def _refuse(self, headers: Headers, limit: int) -> RefusedError | None:
        host = headers.get('host', '')
        if self._hosts is not None and _host_name(host) not in self._hosts:
            return RefusedError(f'this server is not called {host[:100]!r}; ask for {self._hosts[0]}', 403)
        origin = headers.get('origin')
        if origin is not None and urlsplit(origin).netloc != host:
            return RefusedError('requests from pages of other sites are refused', 403)
        length = headers.get('content-length', '0')
        if not (length.isascii() and length.isdecimal()):
            return RefusedError('the Content-Length is not a number', 400)
        return _too_large(limit) if int(length) > limit else None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f'//{host}').hostname or ''
    except ValueError:
        return ''


def _too_large(limit: int) -> RefusedError:
    return RefusedError(f'the body is larger than the {limit:,} bytes that this server takes; send less at a time', 413)


def _answer(error: RefusedError) -> JSONResponse:
    return _problem(str(error), error.status, {'Retry-After': '10'} if error.status == 503 else None)


def _problem(text: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({'error': _encodable(text)}, status, headers)


def _encodable(text: str) -> str:
    """Replace halves of characters, which JSON may hold and UTF-8 may not."""
    return text.encode('utf-8', 'replace').decode()


def make_app(
    models: Sequence[Model],
    *,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    folders: Sequence[str | Path] = (),
    hosts: Sequence[str] | None = LOOPBACK,
    device: str | None = None,
) -> FastAPI:
    """Make the application that serves a model.

    Args:
        models: The same model, loaded once for each job that runs at a time.
        limits: What clients can ask for.
        folders: In which clients may name GeoTIFFs; none for uploads alone.
        hosts: Names under which the server may be asked; None allows any.
        device: Torch device of the jobs; None takes CUDA where there is one.

    Raises:
        RasterError: If a folder does not exist.
        RefusedError: If models of this class need more than rasters.
    """
    use = models[0].raster_use
    if 'polygons' in use.options:
        name = type(models[0]).__name__
        raise RefusedError(f'a {name} {use.text}, which is not served; use geolearn predict with --polygons')
    server = _Server(models, limits, resolve_folders(folders), device)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with server.queue:
            yield

    app = FastAPI(
        title=f'geolearn: {server.title}',
        version=__version__,
        description='Upload a GeoTIFF or name one, follow the job, and fetch the map or the objects.',
        docs_url=None,  # these pages take scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(_Gate, upload_bytes=limits.upload_bytes, hosts=hosts)
    _add_errors(app)
    _add_page(app)
    _add_jobs(app, server)
    _add_layers(app, server)
    return app


class _Server:
    """What the endpoints share: the models, the queue and the tiles of the last few jobs."""

    def __init__(self, models: Sequence[Model], limits: Limits, folders: Sequence[Path], device: str | None) -> None:
        self.spec, self.use, self.title = models[0].spec, models[0].raster_use, type(models[0]).__name__
        self.limits, self.folders, self._device = limits, folders, device
        self.makes_maps = '.tif' in self.use.suffixes
        self.queue = JobQueue([self._work_of(model) for model in models], limits)
        self.image_tiles = lru_cache(8)(self._image_tiles)
        self.map_tiles = lru_cache(8)(self._map_tiles)

    def _work_of(self, model: Model) -> Work:
        def work(job: Job) -> Path:
            dst = job.folder / ('map.tif' if self.makes_maps else 'objects.geojson')
            return model.use_on_raster(job.sources, dst, {**job.options, 'device': self._device})

        return work

    def check(self, job: Job, options: Options) -> None:
        """Refuse rasters and options that cannot be mapped, and give them to the job."""
        dates = self.spec.dates
        if len(job.sources) not in {1, dates} or (self.title == 'ChangeDetector' and len(job.sources) != dates):
            needed = 'one raster' if dates == 1 else f'{dates} rasters, one for each date, oldest first'
            raise RefusedError(f'this model needs {needed}; got {len(job.sources)}')
        given = options.keywords()
        for option in ('threshold', 'blend', 'outputs'):
            if option in given and option not in self.use.options:
                raise RefusedError(f'{option} does not apply to a {self.title}, which {self.use.text}')
        area = options.area()
        job.options = given
        for path, name in zip(job.sources, job.names):
            try:
                check_raster(path, name, self.spec, self.limits, options.resolution, area)
            except (GeoLearnError, ValueError) as error:
                status = error.status if isinstance(error, RefusedError) else 422
                raise RefusedError(as_shown_to_clients(str(error), job.places), status) from error

    async def take_upload(self, request: Request, job: Job) -> dict[str, list[str]]:
        """Store the rasters of a request; return the other fields of its form.

        Raises:
            RefusedError: If it holds none, or takes too long.
        """
        kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                if kind == 'multipart/form-data':
                    return await self._take_form(request, job)
                if kind in TIFF_TYPES:
                    await self._take_body(request, job)
                    return {}
                raise RefusedError(
                    f"Content-Type {kind or 'missing'!r} is not that of a GeoTIFF; send 'Content-Type: "
                    "image/tiff', or a form with a file",
                    415,
                )
        except TimeoutError:
            raise RefusedError(f'the upload took more than {self.limits.upload_seconds:g} s', 408) from None
        except OSError as error:
            if isinstance(error, GeoLearnError):
                raise
            raise RefusedError(f'the server cannot store the upload: {error.strerror}', 507) from error

    async def _take_body(self, request: Request, job: Job) -> None:
        path = job.folder / 'source-0.tif'
        with path.open('wb') as file:
            async for part in request.stream():
                await run_in_threadpool(file.write, part)
        job.sources, job.names = (path,), ('upload.tif',)

    async def _take_form(self, request: Request, job: Job) -> dict[str, list[str]]:
        fields: dict[str, list[str]] = {}
        async with request.form(max_files=64, max_fields=32) as form:
            for name, part in form.multi_items():
                if isinstance(part, str):
                    fields.setdefault(name, []).append(part)
            files = [part for name, part in form.multi_items() if name == 'file' and isinstance(part, UploadFile)]
            if not files:
                raise RefusedError("the form holds no file; name the field of the GeoTIFF 'file'", 400)
            job.names = tuple(check_file_name(file.filename) for file in files)
            paths = [job.folder / f'source-{index}.tif' for index in range(len(files))]
            for file, path in zip(files, paths):
                with path.open('wb') as target:
                    await run_in_threadpool(shutil.copyfileobj, file.file, target)
        job.sources = tuple(paths)
        return fields

    def status(self, job: Job) -> JobStatus:
        """Return what clients see of a job."""
        done = job.state == State.DONE
        return JobStatus(
            id=job.id,
            state=job.state,
            progress=round(job.progress, 4),
            seconds_left=job.seconds_left if job.state == State.RUNNING else None,
            message=job.message,
            rasters=list(job.names),
            result=f'/jobs/{job.id}/result' if done else None,
        )

    def result(self, job: Job) -> FileResponse:
        """Return the file of a job.

        Raises:
            RefusedError: If there is none.
        """
        if job.state == State.FAILED:
            raise RefusedError(job.message, 500 if job.internal else 422)
        if job.state != State.DONE or job.result is None:
            raise RefusedError(f'the job is {job.state}; its result is there when it is done', 409)
        kind = 'image/tiff' if self.makes_maps else 'application/geo+json'
        stem = Path(job.names[0]).stem
        return FileResponse(job.result, media_type=kind, filename=f'{stem}-{job.result.name}')

    def _image_tiles(self, job_id: str) -> ImageTiles:
        job = self.queue.get(job_id)
        if job.state != State.DONE:
            raise RefusedError(f'the job is {job.state}; it is shown when it is done', 409)
        return ImageTiles(job.sources[0], self.spec, job.options)

    def _map_tiles(self, job_id: str) -> MapTiles:
        job = self.queue.get(job_id)
        if job.state != State.DONE or job.result is None or not self.makes_maps:
            raise RefusedError('there is no map of this job; see its result', 409)
        return MapTiles(job.result, self.spec)


def _add_errors(app: FastAPI) -> None:
    """Answer every error as JSON with one line of text; what it is not said in stays in the log."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RasterError)
    async def unreadable(request: Request, error: RasterError) -> JSONResponse:
        log.warning('%s: %s', request.url.path, error)
        return _problem('the raster cannot be read any more', 410)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        return _problem(str(error.detail), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        parts = []
        for found in error.errors()[:5]:
            where = '.'.join(str(step) for step in found['loc'][1:])
            parts.append(f'{where}: {found["msg"]}' if where else str(found['msg']))
        return _problem('; '.join(parts), 422)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return _problem(INTERNAL, 500)


def _add_page(app: FastAPI) -> None:
    folder = importlib.resources.files('geolearn.serve') / 'page'

    @app.get('/', include_in_schema=False)
    def page() -> Response:
        content = (folder / 'page.html').read_bytes()
        return Response(content, media_type='text/html', headers={'content-security-policy': _POLICY})

    @app.get('/page/{name}', include_in_schema=False)
    def part(name: str) -> Response:
        if name not in _PAGES:
            raise RefusedError('there is no such file', 404)
        return Response((folder / name).read_bytes(), media_type=_PAGES[name])


JobId = Annotated[str, UrlPath(pattern='^[0-9a-f]{1,64}$', examples=['4f6c1f0b9a'])]


def _add_jobs(app: FastAPI, server: _Server) -> None:
    queue = server.queue

    async def upload(request: Request, options: Options) -> Job:
        with queue.reserve() as job:
            fields = await server.take_upload(request, job)
            await run_in_threadpool(server.check, job, options.with_fields(fields))
            queue.submit(job)
        return job

    @app.get('/health', summary='Whether the server works, and how busy it is')
    def health() -> dict[str, Any]:
        running, waiting = queue.count(State.RUNNING), queue.count(State.QUEUED)
        return {'status': 'ok', 'model': server.title, 'running': running, 'queued': waiting, 'workers': queue.workers}

    @app.get('/model', summary='What the model needs and what it gives')
    def model() -> dict[str, Any]:
        spec = server.spec
        return {
            'model': server.title,
            'backbone': spec.backbone,
            'use': server.use.text,
            'bands': [{'name': band.name, 'wavelength_um': band.wavelength_um} for band in spec.bands],
            'dates': spec.dates,
            'classes': [
                {'value': info.value, 'name': info.name, 'color': '#{:02x}{:02x}{:02x}'.format(*info.color)}
                for info in spec.class_infos
            ],
            'result': 'image/tiff' if server.makes_maps else 'application/geo+json',
            'named': bool(server.folders),
            'limits': {'bytes': server.limits.upload_bytes, 'pixels': server.limits.pixels},
        }

    @app.post('/jobs', status_code=202, openapi_extra=_UPLOAD, responses=_PROBLEMS, summary='Upload a GeoTIFF')
    async def create(request: Request, options: Annotated[Options, Query()]) -> JobStatus:
        return server.status(await upload(request, options))

    @app.post('/jobs/named', status_code=202, responses=_PROBLEMS, summary='Name a GeoTIFF in an allowed folder')
    def create_named(
        named: Annotated[
            NamedRasters,
            Body(
                openapi_examples={
                    'one raster': {'value': {'paths': ['scene.tif']}},
                    'bands by name': {'value': {'paths': ['2024/scene.tif'], 'sensor': 'Sentinel-2', 'scale': 1}},
                }
            ),
        ],
    ) -> JobStatus:
        with queue.reserve() as job:
            job.sources = tuple(find_named(name, server.folders) for name in named.paths)
            job.names = tuple(_encodable(Path(name).name) for name in named.paths)
            server.check(job, named)
            queue.submit(job)
        return server.status(job)

    @app.get('/jobs', summary='All jobs, the oldest first')
    def jobs() -> list[JobStatus]:
        return [server.status(job) for job in queue.jobs()]

    @app.get('/jobs/{job_id}', responses=_PROBLEMS, summary='State and progress of a job')
    def job(job_id: JobId) -> JobStatus:
        return server.status(queue.get(job_id))

    @app.delete('/jobs/{job_id}', responses=_PROBLEMS, summary='Cancel a job, or remove one that is over')
    def cancel(job_id: JobId) -> JobStatus:
        return server.status(queue.cancel(job_id))

    result_types: Mapping[str, Any] = {'image/tiff': {}, 'application/geo+json': {}}
    files: dict[int | str, dict[str, Any]] = {
        **_PROBLEMS,
        200: {'content': result_types, 'description': 'GeoTIFF of a map, or GeoJSON of objects'},
    }

    @app.get('/jobs/{job_id}/result', responses=files, response_class=FileResponse, summary='The map or the objects')
    def result(job_id: JobId) -> FileResponse:
        return server.result(queue.get(job_id))

    @app.post(
        '/predict',
        openapi_extra=_UPLOAD,
        responses=files,
        response_class=FileResponse,
        summary='Upload a GeoTIFF, wait, and get the map or the objects',
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> FileResponse:
        job = await upload(request, options)
        while not job.state.is_over:
            if await request.is_disconnected():
                queue.cancel(job.id)
            await asyncio.sleep(0.05)
        return server.result(job)


def _add_layers(app: FastAPI, server: _Server) -> None:
    """Tiles of the raster and of its map, for the page."""

    @app.get('/jobs/{job_id}/view', responses=_PROBLEMS, summary='Where raster and map lie, for web maps')
    def view(job_id: JobId) -> dict[str, Any]:
        server.queue.get(job_id)
        layer = server.image_tiles(job_id).layer
        found: dict[str, Any] = {
            'bounds': layer.bounds,
            'image': {'tiles': f'/jobs/{job_id}/image/{{z}}/{{x}}/{{y}}.png', 'minzoom': layer.min_zoom},
            'maxzoom': layer.max_zoom,
            'map': None,
            'objects': None,
        }
        if server.makes_maps:
            tiles = server.map_tiles(job_id)
            found['map'] = {'tiles': f'/jobs/{job_id}/map/{{z}}/{{x}}/{{y}}.png', 'minzoom': tiles.layer.min_zoom}
            if tiles.range is not None:
                found['map'] |= {'range': tiles.range, 'colors': ramp_colors()}
        else:
            found['objects'] = f'/jobs/{job_id}/result'
        return found

    png: dict[int | str, dict[str, Any]] = {**_PROBLEMS, 200: {'content': {'image/png': {}}, 'description': 'a tile'}}

    @app.get('/jobs/{job_id}/image/{z}/{x}/{y}.png', responses=png, response_class=Response, summary='Of the raster')
    def image_tile(job_id: JobId, z: int, x: int, y: int) -> Response:
        server.queue.get(job_id)
        return Response(server.image_tiles(job_id).draw(z, x, y), media_type='image/png')

    @app.get('/jobs/{job_id}/map/{z}/{x}/{y}.png', responses=png, response_class=Response, summary='Of the map')
    def map_tile(job_id: JobId, z: int, x: int, y: int) -> Response:
        server.queue.get(job_id)
        return Response(server.map_tiles(job_id).draw(z, x, y), media_type='image/png')
