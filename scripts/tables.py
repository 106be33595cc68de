"""The tables and the picture that documents show of the results in `bench/results`.

A document has blocks between `<!-- results: NAME -->` and `<!-- end of results -->`; what stands between them is
replaced. Ratios are others to ringecho in CPU time, latency or memory, so above 1 ringecho needs less. This module
measures nothing, and writes no figure that is not in a result.
"""

import json
import math
import re

import cells

DOCUMENTS = ("README.md", "docs/performance.md", "docs/engines.md", "docs/offload.md")
# Groups whose cells have a table each, with a row for each server.
BY_SERVER = ("engines", "offloaded")
PICTURE = "docs/performance.svg"
BLOCK = re.compile(r"(<!-- results: ([a-z]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

FIGURES = {"CPU time": "CPU time", "p50": "median latency", "bytes": "memory"}
# In the README: one row for each kind of work.
FIRST_ROWS = ("rtt-16", "open-64-16", "load-64x1-16", "load-64x16-16", "load-8x4-4096", "load-4x1-1048576", "deflate-1024")


def write(results, root, is_check):
    """Brings the documents and the picture up to date, or only tells which are not; returns those."""
    machines = read(results)
    texts = {}
    for name in DOCUMENTS:
        text = (root / name).read_text()
        folder = "../" * name.count("/") + "bench/results"
        texts[name] = BLOCK.sub(lambda block: block[1] + shown(block[2], machines, folder) + block[3], text)
    texts[PICTURE] = picture(summary(machines))
    changed = [name for name, text in texts.items() if not same(root / name, text)]
    if not is_check:
        for name in changed:
            (root / name).write_text(texts[name])
    return changed


def same(path, text):
    return path.exists() and path.read_text() == text


def read(results):
    """The results by machine and cell, in the order of the matrix."""
    machines = {}
    for directory in sorted(path for path in results.iterdir() if path.is_dir()):
        found = {}
        for cell in cells.CELLS:
            path = directory / f"{cell.name}.json"
            if path.exists():
                found[cell.name] = json.loads(path.read_text())
        if found:
            machines[directory.name] = found
    return machines


def shown(block, machines, folder):
    """The text of a block."""
    if not machines:
        return "\nNothing has been measured yet: run `scripts/performance`.\n\n"
    if block == "first":
        return first(machines, folder)
    if block == "summary":
        return summary_table(summary(machines), machines, folder)
    if block == "machines":
        return machine_table(machines)
    if block == "targets":
        return target_table(machines)
    of_group = server_tables if block in BY_SERVER else group_table
    tables = [of_group(block, machine, found, folder) for machine, found in machines.items()]
    return "\n" + "\n".join(filter(None, tables)) + "\n"


def is_floor(name):
    return "tcp" in name


def ratios(cell, result):
    """Each server's ratio to the reference in the cell's figure, with its interval if there is one."""
    if cell.group == "memory":
        own = next(entry["bytes"] for entry in result["measurements"] if entry["name"] == cell.reference)
        return {entry["name"]: (entry["bytes"] / own, None) for entry in result["measurements"]}
    return {cell.reference: (1.0, None), **figure_ratios(result, cell.figure)}


def figure_ratios(result, figure):
    found = {}
    for ratio in result["ratios"]:
        if ratio["figure"] == figure:
            interval = ratio["estimate"]["interval"]
            found[ratio["of"]] = (ratio["estimate"]["median"], interval and (interval["low"], interval["high"]))
    return found


def summary(machines):
    """For each cell that the quick matrix has: the best other server's ratio on each machine."""
    rows = []
    for cell in (cell for cell in cells.CELLS if cell.quick):
        best = []
        for found in machines.values():
            if cell.name not in found:
                continue
            others = {
                name: ratio
                for name, ratio in ratios(cell, found[cell.name]).items()
                if name not in cells.OURS and not is_floor(name)
            }
            if others:
                name = min(others, key=lambda name: others[name][0])
                best.append((name, *others[name]))
        if best:
            rows.append((cell, best))
    return rows


def number(value):
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def best_text(best):
    """The ratio with its interval, or the range over several machines."""
    if len(best) == 1:
        return with_interval(best[0][1:])
    values = [ratio for _, ratio, _ in best]
    return f"{number(min(values))} to {number(max(values))}"


def verdict(best):
    """Ahead or behind where the whole interval, on every machine, says so."""
    low = min(interval[0] if interval else ratio for _, ratio, interval in best)
    high = max(interval[1] if interval else ratio for _, ratio, interval in best)
    return "ahead" if low > 1 else "**behind**" if high < 1 else "even"


def machine_text(found):
    machine = next(iter(found.values()))["machine"]
    costs = [result["machine"]["wake_up_us"] for result in found.values()]
    cost = f"{min(costs):g} µs" if min(costs) == max(costs) else f"{min(costs):g} to {max(costs):g} µs"
    return f"{machine['cpu']} ({', '.join(machine['flags'])}), {machine['cpus']} CPUs, wake-up {cost}"


def caption(machines):
    return "Measured on " + "; ".join(machine_text(found) for found in machines.values()) + ".\n"


def summary_table(rows, machines, folder):
    lines = ["", "| work | figure | best other server | its figure / ringecho's | ringecho is |", "|---|---|---|---|---|"]
    for cell, best in rows:
        names = " or ".join(sorted({name for name, _, _ in best}))
        title = linked(cell, next(name for name, found in machines.items() if cell.name in found), folder)
        lines.append(f"| {title} | {FIGURES[cell.figure]} | {names} | {best_text(best)} | {verdict(best)} |")
    return "\n".join([*lines, "", caption(machines), ""])


def linked(cell, machine, folder):
    return f"[{cell.title}]({folder}/{machine}/{cell.name}.json)"


def first(machines, folder):
    rows = [row for row in summary(machines) if row[0].name in FIRST_ROWS]
    return summary_table(rows, machines, folder)


def machine_table(machines):
    lines = ["", "| results | CPU | flags | CPUs | kernel | virtual | wake-up, µs |", "|---|---|---|---|---|---|---|"]
    for name, found in machines.items():
        machine = next(iter(found.values()))["machine"]
        environment = next((result["environment"] for result in found.values() if "environment" in result), {})
        costs = [result["machine"]["wake_up_us"] for result in found.values()]
        virtual = "yes" if environment.get("is_virtual") else "no"
        lines.append(
            f"| `bench/results/{name}/` | {machine['cpu']} | {' '.join(machine['flags'])} | {machine['cpus']} | "
            f"{environment.get('kernel', '')} | {virtual} | {min(costs):g} to {max(costs):g} |"
        )
    return "\n".join([*lines, "", ""])


def own_figure(cell, result):
    """The reference's own figure, for orientation."""
    entry = next(entry for entry in result["measurements"] if entry["name"] == cell.reference)
    if cell.group == "memory":
        return f"{entry['bytes']:,} B"
    if cell.figure == "p50":
        return f"{entry['latency']['p50_ns'] / 1000:.1f} µs"
    cost = entry["cost"] or {}
    return f"{cost['cpu_us']:.2f} µs" if cost.get("cpu_us") is not None else "unknown"


def group_table(group, machine, found, folder):
    """A row for each cell, a column for each server: ratios in the cell's figure, then in the rate."""
    rows = [cell for cell in cells.CELLS if cell.group == group and cell.name in found]
    if not rows:
        return ""
    names = []
    for cell in rows:
        names += [name for name in ratios(cell, found[cell.name]) if name not in names and name != cell.reference]
    figure, reference = rows[0].figure, rows[0].reference
    of = {"ringecho": "ringecho", "epoll": "ringecho `--engine epoll`"}.get(reference, "ringecho `--wait block`")
    text = caption({machine: found})
    text += f"\n{FIGURES[figure][0].upper()}{FIGURES[figure][1:]} of others / that of {of}, median of paired rounds:\n\n"
    text += table(rows, names, found, folder, machine, lambda cell, result: ratios(cell, result), figure)
    if group in ("load", "deflate", "handshakes", "offload"):
        text += f"\nMessages per second of others / those of {of}:\n\n"
        text += table(rows, names, found, folder, machine, lambda _, result: figure_ratios(result, "rate"), None)
    if group in ("rtt", "epoll", "open"):
        text += f"\n99th percentile of others / that of {of}:\n\n"
        text += table(rows, names, found, folder, machine, lambda _, result: figure_ratios(result, "p99"), None)
        text += f"\nCPU time of others / that of {of}:\n\n"
        text += table(rows, names, found, folder, machine, lambda _, result: figure_ratios(result, "CPU time"), None)
    return text


def server_tables(group, machine, found, folder):
    """A table for each cell, with a row for each server: its own figures, and ratios with their intervals."""
    rows = [cell for cell in cells.CELLS if cell.group == group and cell.name in found]
    if not rows:
        return ""
    lines = [caption({machine: found})]
    for cell in rows:
        result = found[cell.name]
        figures = ("p50", "p99") if group == "offloaded" else ("CPU time", "p50", "p99")
        of = {figure: figure_ratios(result, figure) for figure in figures}
        shown = [figure for figure, values in of.items() if values]
        lines += [f"{linked(cell, machine, folder)}:", ""]
        lines.append("| server | CPU µs | p50 µs | " + " | ".join(f"{figure} ratio" for figure in shown) + " |")
        lines.append("|---|---|---|" + "---|" * len(shown))
        for entry in result["measurements"]:
            name = entry["name"]
            cost = (entry["cost"] or {}).get("cpu_us")
            values = [with_interval(of[figure].get(name)) if name != cell.reference else "1" for figure in shown]
            own = f"{number(cost) if cost is not None else ''} | {entry['latency']['p50_ns'] / 1000:.1f}"
            lines.append(f"| {name} | {own} | " + " | ".join(values) + " |")
        lines.append("")
    return "\n".join(lines)


def with_interval(ratio):
    if ratio is None:
        return ""
    value, interval = ratio
    return number(value) + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")


def table(rows, names, found, folder, machine, of, figure):
    names = [name for name in names if any(name in of(cell, found[cell.name]) for cell in rows)]
    own = " ringecho |" if figure else ""
    lines = [f"| work |{own} " + " | ".join(names) + " |", "|---|" + ("---|" if figure else "") + "---|" * len(names)]
    for cell in rows:
        result = found[cell.name]
        values = of(cell, result)
        shown = [number(values[name][0]) if name in values else "" for name in names]
        own = f" {own_figure(cell, result)} |" if figure else ""
        lines.append(f"| {linked(cell, machine, folder)} |{own} " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


# A target: the cell, the figure, the server, its bound, and whether the server may be at most or must be at least that.
TARGETS = (
    ("rtt-16", "p50", "spin", "at least", 0.87, "default's median at most 1.15 of `spin`'s"),
    ("rtt-16", "p50", "others", "at least", 2.22, "default's median at most 0.45 of the best other server's"),
    ("rtt-16-epoll", "p50", "epoll-spin", "at least", 0.87, "the same of `--engine epoll`: at most 1.15 of `spin`'s"),
    ("rtt-16-epoll", "p50", "others", "at least", 2.22, "and at most 0.45 of the best other server's"),
    ("sparse-16", "CPU time", "ringecho", "at most", 1.15, "100 messages a second: default's CPU time at most 1.15 of `block`'s"),
    ("sparse-16-epoll", "CPU time", "epoll", "at most", 1.15, "the same of `--engine epoll`"),
    ("load-64x1-16", "CPU time", "uwebsockets", "at least", 1.22, "64 × 1, 16 B: at most 0.82 of uWebSockets' CPU time"),
    ("load-64x16-16", "CPU time", "uwebsockets", "at least", 1.33, "64 × 16, 16 B: at most 0.75"),
    ("load-1000x1-16", "CPU time", "uwebsockets", "at least", 1.18, "1,000 × 1, 16 B: at most 0.85"),
    ("load-1000x1-16", "p50", "uwebsockets", "at least", 1.0, "1,000 × 1, 16 B: median latency no worse than uWebSockets'"),
    ("load-1x16-16", "CPU time", "uwebsockets", "at least", 1.0, "1 × 16, 16 B: at most 1.0"),
    ("load-8x4-4096", "CPU time", "uwebsockets", "at least", 1.05, "8 × 4, 4 KiB: at most 0.95"),
    ("load-8x1-16384", "CPU time", "uwebsockets", "at least", 1.11, "8 × 1, 16 KiB: at most 0.9"),
    ("load-8x1-65536", "CPU time", "uwebsockets", "at least", 1.11, "8 × 1, 64 KiB: at most 0.9"),
    ("load-4x1-1048576", "CPU time", "others", "at least", 1.33, "4 × 1, 1 MiB: at most 0.75 of the best other server's CPU time"),
    ("load-4x1-1048576", "rate", "tcp-epoll", "at most", 1.25, "4 × 1, 1 MiB: at least 0.8 of a plain TCP echo's bytes per second"),
    ("load-1x1-16777216", "CPU time", "others", "at least", 1.33, "1 × 1, 16 MiB: the same of the CPU time"),
    ("load-1x1-16777216", "rate", "tcp-epoll", "at most", 1.25, "1 × 1, 16 MiB: the same of the bytes per second"),
    ("deflate-1024", "CPU time", "others", "at least", 5, "compression, 1 KiB: 5 times the messages per CPU second"),
    ("deflate-65536", "CPU time", "others", "at least", 5, "compression, 64 KiB: the same"),
    ("deflate-1x16-1024", "CPU time", "others", "at least", 5, "compression, 1 KiB, 16 in flight: the same"),
    ("handshakes", "rate", "others", "at most", 0.83, "handshakes per second: at least 1.2 of the best"),
    ("idle-memory", "bytes", "others", "at least", 1.67, "memory per idle connection: at most 0.6 of the best"),
)


def target_table(machines):
    lines = ["", "| target | machine | as a ratio, other / ringecho | measured | met |", "|---|---|---|---|---|"]
    by_name = {cell.name: cell for cell in cells.CELLS}
    for name, figure, server, bound, limit, title in TARGETS:
        cell = by_name[name]
        for machine, found in machines.items():
            if name not in found:
                continue
            values = ratios(cell, found[name]) if figure == cell.figure else figure_ratios(found[name], figure)
            others = [key for key in values if key not in cells.OURS and not is_floor(key)]
            measured = [values[key][0] for key in ([server] if server != "others" else others) if key in values]
            if not measured:
                continue
            value = min(measured) if bound == "at least" else max(measured)
            met = value >= limit if bound == "at least" else value <= limit
            lines.append(f"| {title} | `{machine}` | {bound} {limit:g} | {number(value)} | {'yes' if met else '**no**'} |")
    for machine, found in machines.items():
        costs = [cpu_us(found.get(f"load-{connections}x1-16")) for connections in (100, 10_000)]
        if None not in costs:
            value = costs[1] / costs[0]
            title = "CPU time per message at 10,000 connections: at most 1.3 of that at 100"
            lines.append(f"| {title} | `{machine}` | at most 1.3, of itself | {number(value)} | {'yes' if value <= 1.3 else '**no**'} |")
    return "\n".join([*lines, "", ""])


def cpu_us(result):
    """What a message costs ringecho in a load."""
    if result is None:
        return None
    entry = next(entry for entry in result["measurements"] if entry["name"] == "block")
    return (entry["cost"] or {}).get("cpu_us")


STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.small { font-size: 11px; fill: #59636e; }
.axis { stroke: #d1d9e0; }
.one { stroke: #59636e; stroke-width: 1.5; }
.ahead { fill: #1a7f37; stroke: #1a7f37; }
.behind { fill: #cf222e; stroke: #cf222e; }
.even { fill: #6e7781; stroke: #6e7781; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .axis { stroke: #3d444d; }
  .one { stroke: #9198a1; }
  .ahead { fill: #3fb950; stroke: #3fb950; }
  .behind { fill: #f85149; stroke: #f85149; }
  .even { fill: #9198a1; stroke: #9198a1; }
}"""
WIDTH, ROW, TOP, LEFT, RIGHT = 880, 24, 52, 312, 20
# Of a small letter, at most.
LETTER = 6
LOWEST, HIGHEST = 0.5, 16


def picture(rows):
    """A line for each kind of work: where the best other server is, on a scale of powers of two."""
    height = TOP + ROW * len(rows) + 12
    bottom = height - 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The best other server compared with ringecho, by kind of work">',
        f"<style>{STYLE}</style>",
        f'<text x="{place(1) - 6:.0f}" y="14" text-anchor="end" class="small">← other server needs less</text>',
        f'<text x="{place(1) + 6:.0f}" y="14" class="small">ringecho needs less →</text>',
    ]
    for power in range(int(math.log2(LOWEST)), int(math.log2(HIGHEST)) + 1):
        value = 2.0**power
        kind = "one" if value == 1 else "axis"
        x = place(value)
        parts.append(f'<text x="{x:.1f}" y="32" text-anchor="middle" class="small">{value:g}×</text>')
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="38" y2="{bottom}" class="{kind}"/>')
    for index, (cell, best) in enumerate(rows):
        y = TOP + ROW * index + 4
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{cell.title}</text>')
        kind = verdict(best).strip("*")
        low = min(interval[0] if interval else ratio for _, ratio, interval in best)
        high = max(interval[1] if interval else ratio for _, ratio, interval in best)
        parts.append(f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y}" y2="{y}" class="{kind}" stroke-width="3"/>')
        for _, ratio, _ in best:
            parts.append(f'<circle cx="{place(ratio):.1f}" cy="{y}" r="5" class="{kind}"/>')
        names = " or ".join(sorted({name for name, _, _ in best}))
        x, anchor, label = labelled(place(low), place(high), names, best_text(best).split(" (")[0])
        parts.append(f'<text x="{x:.1f}" y="{y + 4}" text-anchor="{anchor}" class="small">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def labelled(low, high, names, ratio):
    """Where the label of a line that reaches from `low` to `high` fits; without names if it fits nowhere with them."""
    right, left = max(high, place(1)) + 10, low - 10
    for label in (f"{names} {ratio}", ratio):
        if right + LETTER * len(label) <= WIDTH:
            return right, "start", label
        if left - LETTER * len(label) >= LEFT:
            return left, "end", label
    return right, "start", ""


def place(ratio):
    """The abscissa of a ratio; what lies beyond the scale is at its end."""
    part = math.log(min(max(ratio, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)
    return LEFT + part * (WIDTH - LEFT - RIGHT)
