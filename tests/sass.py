#!/usr/bin/env python3
"""Looks at the instructions of the compiled kernels: what must be there is, what must not is not, and how many there are is on record.

    tests/sass.py NVDISASM CUBINS RECORD

CUBINS has a folder for each architecture, which `medmerge kernels --arch sm_90a --cubin CUBINS/sm_90a --json > CUBINS/sm_90a.json`
wrote. NVDISASM comes with the CUDA toolkit, and as nvidia-cuda-nvdisasm from PyPI. Prints a line for each kernel of sm_90a with rules, and
fails if one is broken (exit status 1), or if the kernels for tensor cores have other numbers of instructions than RECORD says (2); what
they have now is written beside CUBINS. Standard library only.
"""

import json
import pathlib
import re
import subprocess
import sys

# An instruction: its address in a comment, maybe a predicate, its name.
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)")
SECTION = re.compile(r"^\.text\.(\w+):")
LABEL = re.compile(r"^(\.L_x_\d+):")
JUMP = re.compile(r"\bBRA(?:\.\w+)*\s.*`\((\.L_x_\d+)\)")
PRODUCT = re.compile(r"HMMA|HGMMA")

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
    (rf"{WIDE}_tf32", r"HGMMA\.64x\d+x8\.F32\.TF32$", "warpgroups multiply"),
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


class Kernel:
    """Instructions, and the loops among them: first and last of each."""

    def __init__(self):
        self.instructions, self.labels, self.loops = [], {}, []

    def main_loop(self):
        """The shortest loop with the most products: how many instructions stand before, in and behind it, and its products."""
        products = lambda loop: sum(bool(PRODUCT.match(i)) for i in self.instructions[loop[0] : loop[1] + 1])
        if not self.loops:
            return None
        first, last = max(self.loops, key=lambda loop: (products(loop), loop[0] - loop[1]))
        return first, last + 1 - first, len(self.instructions) - last - 1, products((first, last))


def kernels(nvdisasm, cubin):
    """Each kernel of a binary."""
    text = subprocess.run([nvdisasm, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    found, current = {}, None
    for line in text.splitlines():
        if section := SECTION.match(line):
            current = found.setdefault(section[1], Kernel())
        elif current is None:
            continue
        elif label := LABEL.match(line):
            current.labels[label[1]] = len(current.instructions)
        elif instruction := INSTRUCTION.match(line):
            if (jump := JUMP.search(line)) and jump[1] in current.labels:
                current.loops.append((current.labels[jump[1]], len(current.instructions)))
            current.instructions.append(instruction[1])
    return found


def record(nvdisasm, folders):
    """How many instructions the kernels for tensor cores have, by the compiler that made them."""
    versions = {json.loads(folder.with_suffix(".json").read_text())["compiler"]["version"] for folder in folders}
    lines = [f"# libnvrtc {', '.join(sorted(versions))}", "architecture,kernel,before the main loop,in it,behind it,products in it"]
    for folder in folders:
        for cubin in sorted(folder.glob("conv2d_tensor*.cubin")) + sorted(folder.glob("conv2d_hopper*.cubin")):
            for name, kernel in sorted(kernels(nvdisasm, cubin).items()):
                main_loop = kernel.main_loop()
                if main_loop and main_loop[3]:
                    lines.append(",".join(map(str, (folder.name, name, *main_loop))))
    return "\n".join(lines) + "\n"


def differences(expected, found, architectures):
    """Lines of these architectures that differ, unless another compiler made what is on record."""
    if expected.split("\n")[0] != found.split("\n")[0]:
        print(f"not compared: on record is another compiler than '{found.split(chr(10))[0][2:]}'")
        return []
    differing = set(found.split("\n")) ^ set(expected.split("\n"))
    return sorted(line for line in differing if line.split(",")[0] in architectures)


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


def main(nvdisasm, folder, on_record):
    folders = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir())
    cubins = sorted((pathlib.Path(folder) / "sm_90a").glob("*.cubin"))
    found = {name: kernel.instructions for cubin in cubins for name, kernel in kernels(nvdisasm, cubin).items()}
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
    now = record(nvdisasm, folders)
    beside = pathlib.Path(folder).with_name("instructions.csv")
    beside.write_text(now)
    differing = differences(pathlib.Path(on_record).read_text(), now, {folder.name for folder in folders})
    if differing:
        print(f"error: {len(differing)} lines differ from {on_record}; what is now is in {beside}: {differing[:4]}", file=sys.stderr)
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if wrong or not found else 2 if differing else 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
