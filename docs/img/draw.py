"""Draw the pictures of docs/architecture.md: `python docs/img/draw.py` writes the SVG files beside it."""
# ruff: noqa: INP001 - a script, of no package

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
QKD, PQC, CLASSICAL, KEY, PLAIN = "#d7ecff", "#e6e0ff", "#ffe9c7", "#d9f2df", "#f1f4f7"


class Picture:
    """Boxes, arrows and words on a sheet."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"'
                f' font-family="system-ui, sans-serif" font-size="14" fill="{INK}">'
            ),
            f"<title>{escape(title)}</title>",
            (
                '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
                f' orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
            ),
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        ]

    def box(self, x: int, y: int, width: int, height: int, name: str, what: str = "", fill: str = PLAIN) -> None:
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{FAINT}"/>'
        )
        middle = y + height // 2 + (5 if not what else -3)
        self.words(x + width // 2, middle, name, bold=True)
        if what:
            self.words(x + width // 2, middle + 18, what, faint=True)

    def words(
        self, x: int, y: int, text: str, *, bold: bool = False, faint: bool = False, anchor: str = "middle"
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        look = f' fill="{FAINT}" font-size="12"' if faint else ""
        self._parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}"{weight}{look}>{escape(text)}</text>')

    def arrow(self, *points: tuple[int, int], dashed: bool = False) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.4" marker-end="url(#tip)"{dash}/>'
        )

    def save(self, name: str) -> None:
        (HERE / name).write_text("\n".join([*self._parts, "</svg>\n"]), encoding="utf-8")


def layers() -> None:
    """The house: imports only point down."""
    sheet = Picture(720, 446, "The rooms of the house; imports only point down")
    left, width, high, gap = 20, 680, 50, 8
    rows = (
        (("cli", "people"),),
        (("lab", "whole networks, one process, virtual time, one seed"),),
        (("app", "the only place that picks concrete parts"),),
        (("serve", "doors in"), ("adapters", "arms out")),
        (("kms", "a node's stories"), ("qkd", "physics, emulated devices"), ("net", "sockets, TLS, HTTP, calls")),
        (("core", "meaning: keys, pools, recipes, relay"), ("wire", "bytes of each standard")),
        (("base", "words: names, units, Secret, clock, errors"),),
    )
    for number, row in enumerate(rows):
        each = (width - gap * (len(row) - 1)) // len(row)
        for place, (name, what) in enumerate(row):
            x, y = left + place * (each + gap), 20 + number * (high + gap)
            sheet.box(x, y, each, high, name, what, KEY if name in {"kms", "core"} else PLAIN)
    sheet.save("layers.svg")


def node() -> None:
    """One node: its doors, what it holds, and the way of the strands."""
    sheet = Picture(860, 470, "One node: doors, stories, what lies on its disk")
    sheet.words(20, 30, "One node", bold=True, anchor="start")
    sheet.box(20, 50, 190, 52, "application door", "ETSI GS QKD 014, SAEs", KEY)
    sheet.box(20, 250, 190, 52, "peers' door", "framed calls, nodes")
    sheet.box(20, 350, 190, 52, "management door", "HTTP and JSON, operators")
    sheet.box(270, 50, 170, 52, "deliver, slots, wrap", "take, commit, braid", KEY)
    sheet.box(270, 150, 170, 52, "pools", "segments, windows", KEY)
    sheet.box(270, 250, 170, 52, "sessions, fill", "exchange, compare", PQC)
    sheet.box(270, 350, 170, 52, "explain, notary", "provenance")
    sheet.box(500, 250, 150, 52, "relay, levels", "pad, tag, route", QKD)
    sheet.box(500, 150, 150, 52, "ingest, pads", "blocks of link key", QKD)
    sheet.box(690, 150, 150, 52, "QKD device", "014 and telemetry", QKD)
    sheet.box(500, 50, 340, 52, "X448 + ML-KEM-1024", "classical and post-quantum strands", CLASSICAL)
    sheet.box(500, 350, 340, 52, "store and keyring", "rows, chained ledger | one sealing key per segment")
    sheet.arrow((210, 76), (270, 76))
    sheet.arrow((355, 102), (355, 150))
    sheet.arrow((355, 250), (355, 202))
    sheet.arrow((210, 276), (270, 276))
    sheet.arrow((210, 376), (270, 376))
    sheet.arrow((690, 176), (650, 176))
    sheet.arrow((575, 202), (575, 250))
    sheet.arrow((500, 276), (440, 276))
    sheet.arrow((500, 76), (470, 76), (470, 264), (440, 264))
    sheet.arrow((440, 190), (485, 190), (485, 362), (500, 362), dashed=True)
    sheet.arrow((575, 302), (575, 350), dashed=True)
    sheet.words(
        20, 440, "arrows: the way of secret bits and requests; dashed: made durable", faint=True, anchor="start"
    )
    sheet.words(840, 440, "outside the data directory: node key, anchor", faint=True, anchor="end")
    sheet.save("node.svg")


def braid() -> None:
    """Where the three strands of a key come from."""
    sheet = Picture(860, 300, "Three strands become one key")
    sheet.box(20, 30, 130, 50, "node A", "", PLAIN)
    sheet.box(240, 30, 130, 50, "relay", "keeps nothing", PLAIN)
    sheet.box(460, 30, 130, 50, "node B", "", PLAIN)
    sheet.arrow((150, 55), (240, 55))
    sheet.arrow((370, 55), (460, 55))
    sheet.words(195, 46, "pad + tag", faint=True)
    sheet.words(415, 46, "pad + tag", faint=True)
    sheet.words(305, 104, "QKD bits, hop by hop under one-time pads of each link", faint=True)
    sheet.arrow((85, 80), (85, 130), (525, 130), (525, 80), dashed=True)
    sheet.words(305, 148, "X448 + ML-KEM-1024, end to end: relays see none of it", faint=True)
    for place, (name, what, fill) in enumerate(
        (
            ("QKD strand", "from devices", QKD),
            ("classical strand", "X448", CLASSICAL),
            ("PQC strand", "ML-KEM-1024", PQC),
        )
    ):
        sheet.box(20 + place * 195, 190, 180, 50, name, what, fill)
    sheet.box(690, 180, 150, 70, "key", "CatKDF, bound to all", KEY)
    sheet.arrow((590, 215), (690, 215))
    sheet.words(640, 206, "braid", faint=True)
    sheet.words(430, 276, "bound to: recipe, nodes, SAEs, key ID, policy, provenance, size, transcript", faint=True)
    sheet.save("braid.svg")


if __name__ == "__main__":
    layers()
    node()
    braid()
