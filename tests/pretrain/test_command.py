"""geolearn pretrain."""

import pytest

from geolearn import create_backbone
from geolearn.cli import main
from geolearn.synthetic import make_radar_scene

pytestmark = pytest.mark.usefixtures('one_thread')


def test_a_backbone_is_pretrained_and_drawn(tmp_path, save, capsys):
    made = make_radar_scene(64, seed=1)
    save(tmp_path / 'sar.tif', made.image, transform=made.transform, crs=made.crs)
    words = ['--method', 'mae', '--backbone', 'vit_nano', '--chip-size', '16', '--epochs', '1', '--mask', '0.5']
    place = ['--working-dir', str(tmp_path), '--figure', str(tmp_path / 'course.png')]
    main(['pretrain', str(tmp_path / 'sar.tif'), '--bands', 'VV', 'VH', '--scale', 'db', *words, *place])
    said = capsys.readouterr().out
    path = tmp_path / 'models' / 'vit_nano-mae.safetensors'
    assert f'weights  {path}' in said
    assert (tmp_path / 'course.png').stat().st_size > 1000
    assert create_backbone(str(path), ['VV', 'VH']).name == 'vit_nano'


def test_options_of_the_other_method_are_refused(capsys, tmp_path):
    (tmp_path / 'scene.tif').touch()
    with pytest.raises(SystemExit):
        main(['pretrain', str(tmp_path / 'scene.tif'), '--mask', '0.5'])
    assert '--mask does not apply to --method dino; leave it out' in capsys.readouterr().err
