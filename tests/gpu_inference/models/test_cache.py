"""The result cache: still scenes with noise are answered from it, scenes with something new never."""

from __future__ import annotations

import io

import numpy as np
import pytest

from gpu_inference.models.cache import ResultCache, digest_of, signature_of

MODEL = ("m", "1")
ANSWER = {"label": "cat", "score": 0.9}


def scene(seed: int, h: int = 240, w: int = 320) -> np.ndarray:
    """A yard: a gradient, walls, windows, some texture. float [h, w, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w]
    made = np.stack([90 + 60 * y / h, 100 + 40 * x / w, 110 + 0 * x], axis=2).astype(float)
    for _ in range(12):
        top, left = rng.integers(0, h - 20), rng.integers(0, w - 20)
        bottom, right = top + rng.integers(10, 90), left + rng.integers(10, 120)
        made[top:bottom, left:right] = rng.uniform(20, 230, 3)
    return made + rng.normal(0, 4, (h, w, 1))


def photographed(made: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """What a sensor makes of it: read-out noise, and shot noise that grows with light."""
    noise = rng.normal(size=made.shape) * np.sqrt(sigma**2 / 2 + sigma**2 / 2 * made / 128)
    return np.clip(np.round(made + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 8.0])
def test_a_still_scene_with_noise_is_answered_from_the_cache(sigma: float) -> None:
    rng = np.random.default_rng(1)
    cache = ResultCache(ttl_s=60)
    still = scene(1)
    for frame in range(80):
        signature = signature_of(photographed(still, rng, sigma))
        if cache.similar(MODEL, "cam", signature, frame / 10) is None:
            cache.put(MODEL, "cam", ANSWER, frame / 10, signature=signature)
    counts = cache.counts
    assert counts.similar / (counts.similar + counts.stored) >= 0.95
    assert len(cache) <= 4


@pytest.mark.parametrize("quality", [60, 85])
def test_what_jpeg_makes_of_the_noise_is_answered_too(quality: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
    rng = np.random.default_rng(1)
    cache = ResultCache()
    still = scene(1)
    for frame in range(60):
        file = io.BytesIO()
        image.fromarray(photographed(still, rng, 5)).save(file, "JPEG", quality=quality)
        signature = signature_of(np.asarray(image.open(file)))
        if cache.similar(MODEL, "cam", signature, frame / 10) is None:
            cache.put(MODEL, "cam", ANSWER, frame / 10, signature=signature)
    assert cache.counts.similar >= 0.9 * 60


@pytest.mark.parametrize("side", [8, 12, 24])
def test_a_small_new_object_is_never_answered_from_the_cache(side: int) -> None:
    rng = np.random.default_rng(side)
    answered = 0
    for trial in range(40):
        still = scene(trial % 5)
        cache = ResultCache(per_source=4)
        for _ in range(3):
            cache.put(MODEL, "cam", ANSWER, 0, signature=signature_of(photographed(still, rng, 5)))
        top, left = rng.integers(0, 240 - side), rng.integers(0, 320 - side)
        new = still.copy()
        place = new[top : top + side, left : left + side]
        place += 50 * np.where(place.mean() < 128, 1, -1)  # clearly lighter or darker than what was there
        signature = signature_of(photographed(new, rng, 5))
        answered += cache.similar(MODEL, "cam", signature, 1) is not None
    assert answered == 0


def test_a_slow_change_is_held_against_what_was_answered_not_against_the_last_picture() -> None:
    cache = ResultCache(tolerance=6.5)
    still = scene(2)
    answered_at = []
    for step in range(40):
        signature = signature_of(np.clip(still + step, 0, 255).astype(np.uint8))
        if cache.similar(MODEL, "cam", signature, 0) is None:
            answered_at.append(step)
            cache.put(MODEL, "cam", ANSWER, 0, signature=signature)
    assert answered_at == list(range(0, 40, 7))


def test_the_block_means_are_those_of_numpy() -> None:
    image = np.random.default_rng(3).integers(0, 256, (50, 37, 1), dtype=np.uint8)
    signature = signature_of(image)
    assert signature.means.shape == (6, 4, 1)
    edges_y, edges_x = [0, 8, 16, 24, 32, 40, 50], [0, 8, 16, 24, 37]
    for row in range(6):
        for column in range(4):
            block = image[edges_y[row] : edges_y[row + 1], edges_x[column] : edges_x[column + 1]]
            np.testing.assert_allclose(signature.means[row, column], block.mean(axis=(0, 1)), rtol=1e-6)
    assert signature_of(np.zeros((1080, 1920), np.uint8)).means.shape == (36, 64, 1)
    assert signature_of(np.zeros((3, 5), np.uint8)).means.shape == (1, 1, 1)


def test_colours_count_as_brightness_and_its_differences_to_blue_and_red() -> None:
    red, green, blue = 200, 60, 20
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    wanted = [brightness, (blue - brightness) / 1.772, (red - brightness) / 1.402]
    means = signature_of(np.full((8, 8, 3), [red, green, blue], np.uint8)).means
    np.testing.assert_allclose(means[0, 0], wanted, atol=0.01)


def test_the_same_bytes_have_the_same_answer_whatever_their_source() -> None:
    cache = ResultCache(ttl_s=10)
    cache.put(MODEL, "a", ANSWER, 0, digest=digest_of(b"jpeg"))
    assert cache.exact(MODEL, digest_of(b"jpeg"), 5) == ANSWER
    assert cache.exact(MODEL, digest_of(b"other"), 5) is None
    assert cache.exact(("m", "2"), digest_of(b"jpeg"), 5) is None
    assert cache.exact(MODEL, digest_of(b"jpeg"), 11) is None
    assert len(cache) == 0
    assert (cache.counts.exact, cache.counts.stored, cache.counts.expired) == (1, 1, 1)


def test_pictures_alike_count_only_for_their_source_size_and_model() -> None:
    cache = ResultCache(ttl_s=10)
    signature = signature_of(np.full((40, 40, 3), 100, np.uint8))
    cache.put(MODEL, "a", ANSWER, 0, signature=signature)
    assert cache.similar(MODEL, "a", signature, 1) == ANSWER
    assert cache.similar(MODEL, "b", signature, 1) is None
    assert cache.similar(("m", "2"), "a", signature, 1) is None
    assert cache.similar(MODEL, "a", signature_of(np.full((40, 41, 3), 100, np.uint8)), 1) is None
    assert cache.similar(MODEL, "a", signature, 11) is None
    assert len(cache) == 0


def test_entries_and_bytes_are_bounded_and_the_longest_unused_goes_first() -> None:
    cache = ResultCache(max_entries=3)
    for i in range(3):
        cache.put(MODEL, "a", ANSWER, 0, digest=bytes([i]))
    cache.exact(MODEL, b"\0", 0)
    cache.put(MODEL, "a", ANSWER, 0, digest=b"\3")
    assert [cache.exact(MODEL, bytes([i]), 0) is not None for i in range(4)] == [True, False, True, True]
    assert cache.counts.evicted == 1
    small = ResultCache(max_bytes=50_000)
    image = np.zeros((64, 64, 3), np.uint8)
    for i in range(1000):
        small.put(
            MODEL, f"cam-{i % 90}", {"label": "x" * 5000}, 0, bytes(str(i), "ascii"), signature_of(image)
        )
        assert small.size_bytes <= 50_000
    assert 0 < len(small) < 10


def test_errors_are_not_kept_and_unloaded_versions_forgotten() -> None:
    cache = ResultCache()
    cache.put(MODEL, "a", {"error": "not_finite"}, 0, digest=b"1")
    cache.put(MODEL, "a", ANSWER, 0, digest=b"2")
    cache.put(MODEL, "a", ANSWER, 0, digest=b"2")
    cache.put(("m", "2"), "a", ANSWER, 0, digest=b"2", signature=signature_of(np.zeros((9, 9), np.uint8)))
    assert len(cache) == 2
    cache.forget(MODEL)
    assert len(cache) == 1
    cache.forget(("m", "2"))
    assert (len(cache), cache.size_bytes) == (0, 0)
