from __future__ import annotations

import pytest

from benchmarks.engine_networks import mobilenet_v2, resnet50, total_gflop
from gpu_inference.opencl.conv import candidates, default_choice
from gpu_inference.opencl.conv_shape import ConvShape
from gpu_inference.opencl.cost_model import conv_cost_us
from gpu_inference.opencl.tile import _TILES, Tile, tiles_for
from gpu_inference.opencl.traits import RX580, DeviceTraits, traits_from_info


def traits(name: str, vendor: str, *, is_cpu: bool = False) -> DeviceTraits:
    return traits_from_info(
        name=name,
        vendor=vendor,
        is_cpu=is_cpu,
        compute_units=36,
        clock_mhz=1340,
        local_memory_bytes=65536,
        max_work_group=1024,
        native_vector_width=8,
    )


@pytest.mark.parametrize(
    ("name", "vendor", "kind"),
    [
        ("AMD Radeon RX 580 Series (radeonsi, polaris10, ACO, DRM 3.57)", "AMD", "gfx803"),
        ("gfx803", "Advanced Micro Devices, Inc.", "gfx803"),
        ("Ellesmere", "Advanced Micro Devices, Inc.", "gfx803"),
        ("NVIDIA H200", "NVIDIA Corporation", "nvidia"),
        ("gfx1030", "Advanced Micro Devices, Inc.", "other"),
        ("Intel(R) UHD Graphics 630", "Intel", "other"),
    ],
)
def test_devices_are_recognised(name: str, vendor: str, kind: str) -> None:
    assert traits(name, vendor).kind == kind


def test_a_card_of_polaris_gets_no_more_than_its_limits() -> None:
    device = traits("gfx803", "AMD")
    assert device.local_memory_bytes == 32768
    assert device.max_work_group == 256
    assert 6100 < RX580.peak_gflops < 6200


@pytest.mark.parametrize("kind", list(_TILES))
def test_every_tile_keeps_the_rules(kind: str) -> None:
    tiles = [tile for name, some in _TILES.items() if name == kind for tile in some]
    for tile in tiles:
        tile.check()
        assert tile.local_bytes <= 49152
    assert len({tile.label for tile in tiles}) == len(tiles)


def test_a_broken_tile_names_the_rule() -> None:
    with pytest.raises(ValueError, match="at most 256 work-items"):
        Tile(128, 128, 8, 4, 4).check()


def test_networks_have_their_known_work() -> None:
    assert total_gflop(resnet50(1)) == pytest.approx(8.17, abs=0.01)
    assert total_gflop(mobilenet_v2(1)) == pytest.approx(0.599, abs=0.001)


@pytest.mark.parametrize("device", [RX580, traits("NVIDIA H200", "NVIDIA"), traits("cpu", "x", is_cpu=True)])
def test_every_layer_has_distinct_candidates_that_fit(device: DeviceTraits) -> None:
    for layer in resnet50(1) + mobilenet_v2(8):
        choices = candidates(layer.shape, device)
        assert choices
        assert len({choice.label for choice in choices}) == len(choices)
        for choice in choices:
            if choice.tile is not None:
                assert choice.tile in tiles_for(device)
                assert choice.tile.local_bytes <= device.local_memory_bytes


def test_predicted_time_never_beats_the_peak() -> None:
    for layer in resnet50(8) + mobilenet_v2(8):
        choice = default_choice(layer.shape, RX580)
        saved = {"winograd2": 2.25, "winograd4": 4.0}.get(choice.algorithm, 1.0)
        floor_us = layer.shape.flops / saved / RX580.peak_gflops / 1e3
        assert conv_cost_us(layer.shape, choice, RX580) > floor_us


def test_more_work_is_predicted_to_take_longer() -> None:
    small, large = ConvShape(1, 28, 28, 128, 128), ConvShape(32, 28, 28, 128, 128)
    for choice in candidates(small, RX580):
        assert conv_cost_us(large, choice, RX580) > conv_cost_us(small, choice, RX580)


def test_small_outputs_get_more_groups_than_one_tile_each() -> None:
    shape = ConvShape(1, 7, 7, 512, 512, 3, 3, 1, 1, 1, 1, 1, 1)
    choice = default_choice(shape, RX580)
    assert choice.tile is not None
    assert choice.split > 1 or choice.tile.ks > 1 or choice.algorithm != "tile"
