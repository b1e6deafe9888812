#!/usr/bin/env python3
"""Looks at the instructions of the compiled kernels: what must be there is, what must not is not.

    tests/sass.py NVDISASM CUBINS      CUBINS: a folder that `medmerge kernels --arch sm_90a --cubin CUBINS` wrote

NVDISASM comes with the CUDA toolkit, and as nvidia-cuda-nvdisasm from PyPI. Prints a line for each kernel with rules, and
fails if one is broken. Standard library only.
"""

import pathlib
import re
import subprocess
import sys

# An instruction: its address in a comment, maybe a predicate, its name.
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)")
SECTION = re.compile(r"^\.text\.(\w+):")

# Registers that were written to memory and read back; with a stack, so were arrays.
FORBIDDEN_EVERYWHERE = r"(LDL|STL)\b"

TENSOR = r"conv2d_tensor_(fprop|dgrad|wgrad)_(\d+x\d+|stem)\w*"
WIDE = r"conv2d_hopper_(fprop|fprop_statistics|dgrad|dgrad_sums|wgrad|products)_(\d+x\d+)"
MATRIX = {
    "bf16": r"HMMA\.16816\.F32\.BF16",
    "f16": r"HMMA\.16816\.F32$",
    "tf32": r"HMMA\.1688\.F32\.TF32",
}

# (kernels, an instruction that they have, why)
REQUIRED = [
    (r"merge_(blend\w*|gradient)_(f32|bf16|f16)", r"LDG\.E(\.\w+)*\.128", "the sources are loaded 16 bytes at a time"),
    (r"merge_blend\w*_(f32|bf16|f16)", r"STG\.E(\.\w+)*\.128", "the blend is stored 16 bytes at a time"),
    (rf"{TENSOR}_(bf16|f16|tf32)", r"LDGSTS\.E(\.\w+)*\.(128|64)", "tiles are copied asynchronously"),
    (rf"conv2d_tensor_(fprop|dgrad)_\w+_(bf16|f16|tf32)", r"LDSM\.16\.M88\.4", "tiles are loaded as matrices"),
    (rf"conv2d_tensor_(dgrad|wgrad)_\w*\d\w*_(bf16|f16)", r"LDSM\.16\.MT88\.4", "and turned on the way"),
    *[(rf"{TENSOR}_{dtype}", matrix, "tensor cores multiply") for dtype, matrix in MATRIX.items()],
    (r"conv2d_tensor_(fprop|dgrad)_(\d+x\d+|stem)\w*_(bf16|f16|tf32)", r"STG\.E(\.\w+)*\.128", "results are stored 16 bytes at a time"),
    (rf"{WIDE}_bf16", r"HGMMA\.64x\d+x16\.F32\.BF16$", "warpgroups multiply"),
    (rf"{WIDE}_f16", r"HGMMA\.64x\d+x16\.F32$", "warpgroups multiply"),
    (rf"{WIDE}_(bf16|f16)", r"UTMALDG\.4D\.IM2COL", "patches are copied as such"),
    (rf"{WIDE}_(bf16|f16)", r"UTMALDG\.2D", "and the other operand in boxes"),
    (rf"{WIDE}_(bf16|f16)", r"USETMAXREG\.DEALLOC", "registers are handed on"),
    (r"conv2d_hopper_(fprop|dgrad|wgrad)\w*_(bf16|f16)", r"STG\.E(\.\w+)*\.128", "results are stored 16 bytes at a time"),
]

# (kernels, an instruction that they do not have, why)
FORBIDDEN = [
    (rf"{TENSOR}_(bf16|f16|tf32)", r"F2F\b", "numbers are converted in pairs"),
    # dgrad_sums alone asks which part a channel lies in.
    (r"conv2d_tensor_(fprop|dgrad|wgrad)_(\d+x\d+|stem)_(bf16|f16|tf32)", r"F2I\b", "nothing is divided: the host knows by what"),
    (r"conv2d_tensor_fprop_statistics_\w+", r"F2I\b", "nothing is divided: the host knows by what"),
    (rf"{WIDE}_(bf16|f16)", r"LDGSTS|LDSM", "only copies by tensor maps read operands"),
]


def kernels(nvdisasm, cubin):
    """The instructions of each kernel."""
    text = subprocess.run([nvdisasm, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    found, current = {}, None
    for line in text.splitlines():
        if section := SECTION.match(line):
            current = found.setdefault(section[1], [])
        elif current is not None and (instruction := INSTRUCTION.match(line)):
            current.append(instruction[1])
    return found


def broken_rules(name, instructions):
    """What is wrong with a kernel, and how many rules it has."""
    forbidden = sorted({i for i in instructions if re.match(FORBIDDEN_EVERYWHERE, i)})
    problems = [f"{instruction}: memory in the place of registers" for instruction in forbidden]
    rules = 1
    for pattern, instruction, why in REQUIRED:
        if re.fullmatch(pattern, name):
            rules += 1
            if not any(re.match(instruction, i) for i in instructions):
                problems.append(f"no {instruction}: {why}")
    for pattern, instruction, why in FORBIDDEN:
        if re.fullmatch(pattern, name):
            rules += 1
            if any(re.match(instruction, i) for i in instructions):
                problems.append(f"{instruction}: {why}")
    return problems, rules


def main(nvdisasm, folder):
    cubins = sorted(pathlib.Path(folder).glob("*.cubin"))
    found = {name: code for cubin in cubins for name, code in kernels(nvdisasm, cubin).items()}
    unused = [pattern for pattern, _, _ in REQUIRED + FORBIDDEN if not any(re.fullmatch(pattern, name) for name in found)]
    wrong = [f"no kernel is called {pattern}" for pattern in unused]
    for name, instructions in sorted(found.items()):
        problems, rules = broken_rules(name, instructions)
        wrong += [f"{name}: {problem}" for problem in problems]
        if rules > 1:
            counts = {kind: sum(i.split(".")[0] == kind for i in instructions) for kind in ("HMMA", "HGMMA", "LDSM", "LDGSTS", "UTMALDG", "LDG", "STG")}
            told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            print(f"{name}: {len(instructions)} instructions, {told}")
    print(f"{len(found)} kernels in {len(cubins)} binaries, {len(wrong)} problems")
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
