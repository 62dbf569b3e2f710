'use strict';
// The page of `geolearn serve`: sends a raster, follows its job, draws raster and result. Asks no other host.

const find = (id) => document.getElementById(id);
const map = new maplibregl.Map({
  container: 'map',
  style: { version: 8, sources: {}, layers: [] },
  center: [0, 0],
  zoom: 1,
  maxZoom: 24,
  attributionControl: false,
  dragRotate: false,
});
map.addControl(new maplibregl.NavigationControl({ showCompass: false }));
map.addControl(new maplibregl.ScaleControl());
const ready = new Promise((resolve) => map.on('load', resolve));

let model = null;
let current = null; // the job that is followed

async function ask(path, options) {
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `the server answered ${response.status}`);
  return answer;
}

function say(text, isError = false) {
  find('message').textContent = text;
  find('message').classList.toggle('error', isError);
}

function readOptions() {
  const options = {};
  for (const input of document.querySelectorAll('details input')) {
    const text = input.value.trim();
    if (text) options[input.name] = input.name === 'bands' ? text.split(/[\s,]+/) : text;
  }
  return options;
}

async function start(event, send) {
  event.preventDefault();
  try {
    say('Sending the raster ...');
    await follow((await send()).id);
  } catch (error) {
    say(error.message, true);
  }
}

find('upload').addEventListener('submit', (event) => start(event, () => {
  const file = find('file').files[0];
  if (!file) throw new Error('Choose a GeoTIFF first.');
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(readOptions())) {
    for (const one of [value].flat()) query.append(name, one);
  }
  const form = new FormData();
  form.append('file', file);
  return ask(`jobs?${query}`, { method: 'POST', body: form });
}));

find('named').addEventListener('submit', (event) => start(event, () => {
  const body = JSON.stringify({ paths: [find('path').value.trim()], ...readOptions() });
  return ask('jobs/named', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
}));

find('cancel').addEventListener('click', () => {
  if (current) ask(`jobs/${current}`, { method: 'DELETE' }).catch((error) => say(error.message, true));
});

async function follow(id) {
  current = id;
  find('work').hidden = false;
  try {
    for (;;) {
      const job = await ask(`jobs/${id}`);
      if (current !== id) return;
      find('progress').value = job.progress;
      const left = job.seconds_left === null ? '' : `, about ${Math.ceil(job.seconds_left)} s left`;
      if (job.state === 'queued') say('Waiting for a worker ...');
      else if (job.state === 'running') say(`${Math.round(100 * job.progress)} %${left}`);
      else {
        await listJobs();
        if (job.state === 'done') await show(job);
        else say(job.message || `The job is ${job.state}.`, job.state === 'failed');
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  } finally {
    if (current === id) find('work').hidden = true;
  }
}

function clearMap() {
  for (const layer of map.getStyle().layers) map.removeLayer(layer.id);
  for (const source of Object.keys(map.getStyle().sources)) map.removeSource(source);
}

function addTiles(name, tiles, view, paint) {
  const url = new URL(tiles.tiles.slice(1), document.baseURI).href.replaceAll('%7B', '{').replaceAll('%7D', '}');
  map.addSource(name, {
    type: 'raster', tiles: [url], tileSize: 256, bounds: view.bounds, minzoom: tiles.minzoom,
    maxzoom: Math.min(view.maxzoom + 1, 24),
  });
  map.addLayer({ id: name, type: 'raster', source: name, paint: { 'raster-fade-duration': 0, ...paint } });
}

async function show(job) {
  find('shown').hidden = false;
  find('download').href = job.result.slice(1);
  say(`${job.rasters.join(', ')} is done.`);
  let view;
  await ready;
  clearMap();
  try {
    view = await ask(`jobs/${job.id}/view`);
  } catch (error) {
    say(error.message, true);
    return;
  }
  map.setMinZoom(0);
  map.fitBounds([view.bounds.slice(0, 2), view.bounds.slice(2)], { padding: 20, animate: false, maxZoom: 22 });
  addTiles('image', view.image, view, { 'raster-resampling': 'linear' });
  if (view.map) addTiles('result', view.map, view, { 'raster-resampling': 'nearest' });
  if (view.objects) {
    const colors = ['match', ['get', 'Class'], ...model.classes.flatMap((one) => [one.name, one.color]), '#e6194b'];
    map.addSource('result', { type: 'geojson', data: view.objects.slice(1) });
    map.addLayer({ id: 'result', type: 'fill', source: 'result', paint: { 'fill-color': colors } });
    map.addLayer({ id: 'edges', type: 'line', source: 'result', paint: { 'line-color': colors, 'line-width': 2 } });
  }
  setOpacity();
  drawLegend(view);
  if (map.getZoom() < view.image.minzoom) say(`${job.rasters[0]} is done; zoom in to see the image.`);
}

function setOpacity() {
  const value = Number(find('opacity').value);
  const layer = map.getLayer('result');
  if (layer) map.setPaintProperty('result', layer.type === 'fill' ? 'fill-opacity' : 'raster-opacity', value);
}
find('opacity').addEventListener('input', setOpacity);

function drawLegend(view) {
  const legend = find('legend');
  legend.replaceChildren();
  const row = () => legend.appendChild(document.createElement('div'));
  if (view.map && view.map.range) {
    const line = row();
    const ramp = document.createElement('span');
    ramp.className = 'ramp';
    ramp.style.background = `linear-gradient(to right, ${view.map.colors.join(', ')})`;
    line.append(view.map.range[0].toPrecision(3), ramp, view.map.range[1].toPrecision(3));
    return;
  }
  for (const one of model.classes) {
    const line = row();
    line.appendChild(document.createElement('i')).style.background = one.color;
    line.append(one.name);
  }
}

async function listJobs() {
  const jobs = await ask('jobs');
  find('jobs').replaceChildren(...jobs.reverse().map((job) => {
    const item = document.createElement('li');
    const button = item.appendChild(document.createElement('button'));
    button.textContent = `${job.rasters.join(', ')}: ${job.state}`;
    button.title = job.message;
    button.disabled = job.state !== 'done';
    button.addEventListener('click', () => { current = job.id; show(job); });
    return item;
  }));
}

(async () => {
  try {
    model = await ask('model');
    find('title').textContent = `${model.model} (${model.backbone})`;
    const dates = model.dates > 1 ? `, ${model.dates} dates` : '';
    find('about').textContent = `This model ${model.use}. Bands: ${model.bands.map((band) => band.name).join(', ')}${dates}.`;
    find('named').hidden = !model.named;
    await listJobs();
    const wanted = location.hash.match(/^#([0-9a-f]+)$/);
    if (wanted) await follow(wanted[1]);
  } catch (error) {
    say(error.message, true);
  }
})();
