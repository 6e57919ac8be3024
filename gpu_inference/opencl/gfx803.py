"""What our kernels become on a gfx803 card (RX 580), told by its compiler without the card.

    report = inspect(Kernel("conv_nhwc.cl", "conv_nhwc", defines))[0]
    report.vgprs, report.waves, report.mad_share

clang compiles the kernel to gfx803 code with the options that we build it with; registers, local memory
and spills come from the metadata that it writes, occupancy from the card's tables, the share of multiply-adds
from the block of the innermost loop. Limits (AMD GCN3 ISA manual, LLVM AMDGPU usage): 256 VGPRs and 10 waves
a SIMD, 4 SIMDs and 64 KB of local memory a compute unit. `v_fma_f32` runs at a quarter of the rate of
`v_mac_f32` and `v_mad_f32` there, so a kernel must not contain it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from gpu_inference.errors import KernelError
from gpu_inference.opencl.launch import Kernel
from gpu_inference.opencl.source import BUILD_OPTIONS, kernel_source

APT_LINE: Final = "apt-get install clang-19 lld-19 llvm-19 rocm-device-libs"

_BITCODE: Final = (
    Path("/usr/lib/x86_64-linux-gnu/amdgcn/bitcode"),
    Path("/usr/lib/amdgcn/bitcode"),
    Path("/opt/rocm/amdgcn/bitcode"),
)
_VGPRS_SIMD: Final = 256
_VGPR_GRAIN: Final = 4
_SGPRS_SIMD: Final = 800
_SGPR_GRAIN: Final = 16
_WAVES_SIMD: Final = 10
_SIMDS: Final = 4
_WAVE: Final = 64
_LDS_CU: Final = 65536
_LDS_GRAIN: Final = 512
_GROUPS_CU: Final = 16

_MAD: Final = re.compile(r"v_(mac|mad|madmk|madak)_f32")
_SLOW_FMA: Final = re.compile(r"v_fma_f32")


@dataclass(frozen=True, slots=True)
class IsaReport:
    """One kernel as gfx803 code.

    Attributes:
        name: the kernel function.
        vgprs: vector registers of a lane, of 256.
        sgprs: scalar registers of a wave.
        local_bytes: local memory of a group.
        spills: registers and scratch bytes that went to memory; 0 is the only good number.
        group: work-items of a group.
        instructions: of the whole kernel.
        slow_fma: v_fma_f32 in it.
        loop_valu: vector instructions in the hottest block.
        loop_mads: those that are full-rate multiply-adds.
        loop_lds: its local memory instructions.
        loop_memory: its global memory instructions.
    """

    name: str
    vgprs: int
    sgprs: int
    local_bytes: int
    spills: int
    group: int
    instructions: int
    slow_fma: int
    loop_valu: int
    loop_mads: int
    loop_lds: int
    loop_memory: int

    @property
    def mad_share(self) -> float:
        """Multiply-adds among the vector instructions of the hottest block, 0 to 1."""
        return self.loop_mads / max(self.loop_valu, 1)

    @property
    def groups_per_cu(self) -> int:
        """Groups that fit on a compute unit at once."""
        by_vgprs = _VGPRS_SIMD // _grain(self.vgprs, _VGPR_GRAIN)
        by_sgprs = _SGPRS_SIMD // _grain(self.sgprs, _SGPR_GRAIN)
        waves = min(by_vgprs, by_sgprs, _WAVES_SIMD) * _SIMDS
        groups = waves // max(1, -(-self.group // _WAVE))
        if self.group > _WAVE:
            groups = min(groups, _GROUPS_CU)
        if self.local_bytes:
            groups = min(groups, _LDS_CU // _grain(self.local_bytes, _LDS_GRAIN))
        return groups

    @property
    def waves(self) -> float:
        """Waves that a SIMD interleaves, of 10."""
        return self.groups_per_cu * -(-self.group // _WAVE) / _SIMDS

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.vgprs} VGPRs, {self.sgprs} SGPRs, {self.local_bytes} B local, "
            f"{self.spills} spills, {self.waves:g} waves, loop {self.loop_mads}/{self.loop_valu} mad "
            f"({100 * self.mad_share:.0f}%), {self.loop_lds} lds, {self.loop_memory} mem"
        )


def _grain(value: int, grain: int) -> int:
    return -(-max(value, 1) // grain) * grain


@cache
def toolchain() -> tuple[str, Path] | None:
    """The newest clang that knows gfx803 and the folder of device libraries; None where either is missing."""
    clangs = [f"clang-{version}" for version in range(21, 14, -1)] + ["clang"]
    clang = next((path for name in clangs if (path := shutil.which(name))), None)
    bitcode = next((folder for folder in _BITCODE if (folder / "opencl.bc").is_file()), None)
    return (clang, bitcode) if clang and bitcode else None


def assembly(kernel: Kernel) -> str:
    """The gfx803 assembly of the kernel's program.

    Raises:
        KernelError: no compiler here (the message names the packages), or the kernel doesn't compile.
    """
    tools = toolchain()
    if tools is None:
        raise KernelError(f"no clang with AMD's device libraries here: {APT_LINE}")
    clang, bitcode = tools
    source = kernel.source if kernel.file is None else kernel_source(kernel.file)
    command = [clang, "-x", "cl", "-target", "amdgcn-amd-amdhsa", "-mcpu=gfx803", "-O3", "-S", "-o", "-"]
    command += [*BUILD_OPTIONS, f"--rocm-device-lib-path={bitcode}", "-w"]
    command += [f"-D{name}={value}" for name, value in kernel.defines] + ["-"]
    run = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if run.returncode:
        raise KernelError(f"{kernel.name} doesn't compile for gfx803: {run.stderr[:2000]}")
    return run.stdout


def inspect(kernel: Kernel) -> list[IsaReport]:
    """Reports of every kernel function in the kernel's program."""
    return _reports(assembly(kernel))


def _reports(text: str) -> list[IsaReport]:
    metadata = text[text.index(".amdgpu_metadata") :]
    reports = []
    for entry in re.split(r"\n  - (?=\.arg)", metadata)[1:]:
        name = re.search(r"^    \.name:\s+(\S+)", entry, re.MULTILINE)
        if name is None:
            continue
        body = text[text.index(f"\n{name[1]}:") :]
        body = body[: body.index(".Lfunc_end")]
        # basic blocks start at labels and end at branches
        blocks = re.split(r"^\.LBB\w+:.*$|^\s+s_c?branch\S*\s.*$", body, flags=re.MULTILINE)
        hot = _opcodes(max(blocks, key=lambda block: len(_MAD.findall(block))))
        everything = _opcodes(body)
        group = re.search(r"\.reqd_workgroup_size:((?:\s+- \d+)+)", entry)
        sizes = [int(size) for size in re.findall(r"\d+", group[1])] if group else [256]
        size = 1
        for extent in sizes:
            size *= extent
        valu = [op for op in hot if op.startswith("v_")]
        reports.append(
            IsaReport(
                name=name[1],
                vgprs=_field(entry, "vgpr_count"),
                sgprs=_field(entry, "sgpr_count"),
                local_bytes=_field(entry, "group_segment_fixed_size"),
                spills=_field(entry, "vgpr_spill_count")
                + _field(entry, "sgpr_spill_count")
                + _field(entry, "private_segment_fixed_size"),
                group=size,
                instructions=len(everything),
                slow_fma=sum(bool(_SLOW_FMA.match(op)) for op in everything),
                loop_valu=len(valu),
                loop_mads=sum(bool(_MAD.match(op)) for op in valu),
                loop_lds=sum(op.startswith("ds_") for op in hot),
                loop_memory=sum(op.startswith(("flat_", "buffer_", "global_")) for op in hot),
            )
        )
    return reports


def _opcodes(block: str) -> list[str]:
    return re.findall(r"^\s+([a-z][a-z0-9_]+)", block, re.MULTILINE)


def _field(entry: str, key: str) -> int:
    match = re.search(rf"\.{key}:\s+(\d+)", entry)
    return int(match[1]) if match else 0
