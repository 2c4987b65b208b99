"""One HTML file that shows a calibration: no script, nothing to be fetched, light or dark as the reader likes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.manifest import Manifest
from cascade.rules import Estimate, Profile
from cascade.trace import Trace, trace
from export import drawings
from export.curves import reliabilities
from export.drawings import Drawing, Samples
from export.guarantee import grid
from export.heldout import HeldOut
from export.show import rule_in_words

SHOWN = 12
HEADER = ("no.", "profile", "rule", "certified", "threshold", "accuracy", "as full", "mean MACs", "of full", "n")
STYLE = """
:root{color-scheme:light dark;--ink:#22303a;--quiet:#75828b;--line:#dfe4e8;--page:#fbfcfd;--card:#fff;
--good:#1d7f5c;--bad:#b3372f}
@media(prefers-color-scheme:dark){:root{--ink:#e4eaee;--quiet:#93a1ab;--line:#33414b;--page:#141b20;--card:#1b242b;
--good:#5fcfa5;--bad:#f08a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px 14px 48px}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px}h2{font-size:1.12rem;margin:34px 0 10px}
p{margin:4px 0;max-width:75ch}.quiet{color:var(--quiet)}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
figure{margin:0;padding:12px 12px 10px;background:var(--card);border:1px solid var(--line);border-radius:8px}
figure svg{display:block;width:100%;height:auto;max-width:560px;margin:0 auto}
figcaption{color:var(--quiet);font-size:.85rem;margin-top:6px}
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:8px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--quiet);font-weight:600}th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}
td small{display:block;color:var(--quiet);font-size:.78rem}
@media(max-width:640px){thead{display:none}
tr{display:grid;grid-template-columns:1fr 1fr;padding:8px 4px;border-top:1px solid var(--line)}
tr:first-child{border-top:0}td,td:nth-child(-n+3){border:0;padding:3px 8px;text-align:left;white-space:normal}
td::before{content:attr(data-title);display:block;color:var(--quiet);font-size:.72rem}
td:nth-child(3){grid-column:1/-1}}
.yes{color:var(--good);font-weight:600}.no{color:var(--quiet)}.alarm{color:var(--bad);font-weight:600}
.images{display:grid;gap:10px;grid-template-columns:repeat(auto-fill,minmax(88px,1fr))}
.images div{font-size:.76rem;line-height:1.35}
.images img{width:100%;aspect-ratio:1;object-fit:contain;border-radius:5px;display:block;
image-rendering:pixelated;background:var(--line)}
"""


def samples_of(held_out: HeldOut, manifest: Manifest) -> Samples:
    """What is drawn of held-out samples; where there are no labels, the full cascade's answers stand for them."""
    traced = trace(held_out.stage_logits, manifest.exit.definition)
    return Samples(held_out.name, traced, traced.classes[:, -1] if held_out.labels is None else held_out.labels)


def draw(manifest: Manifest, held_out: HeldOut, profiles: Sequence[Profile]) -> list[Drawing]:
    """Every drawing of a calibration.

    Args:
        manifest: of the bundle.
        held_out: what it was calibrated on; its other part is drawn beside it.
        profiles: at least one.
    """
    part, costs = samples_of(held_out, manifest), manifest.costs()
    parts = [part] if held_out.other is None else [part, samples_of(held_out.other, manifest)]
    path = grid(len(costs), len(manifest.labels), manifest.exit.definition)
    labelled = held_out.labels is not None
    words = ("right", "wrong") if labelled else ("as the full cascade", "otherwise")
    measure = "accuracy" if labelled else "agreement"
    stages = range(len(costs))
    result = [drawings.tradeoff(each, costs, path, profiles, measure) for each in parts]
    result.append(drawings.exits(profiles))
    result += [drawings.energies(part, stage, words) for stage in stages]
    if labelled:
        found = reliabilities(held_out.stage_logits, part.truth)
        result += [drawings.reliable(part, stage, found[stage]) for stage in stages]
    return result


def page(manifest: Manifest, held_out: HeldOut, profiles: Sequence[Profile], drawn: Sequence[Drawing]) -> str:
    """The whole page.

    Args:
        manifest: of the bundle.
        held_out: what it was calibrated on.
        profiles: in the order of the drawings' numbers.
        drawn: from `draw`.
    """
    name = html.escape(f"{manifest.name} {manifest.version}")
    cards = "".join(
        f"<figure>{drawings.svg(each)}<figcaption>{html.escape(each.words)}</figcaption></figure>" for each in drawn
    )
    alarm = ' class="alarm"' if held_out.seen == "yes" else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}: calibration</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{name}, calibrated on {len(held_out):,} samples</h1>"
        f"<p>{html.escape(held_out.name)}. <span{alarm}>Trained on: {held_out.seen}</span>; "
        f"{html.escape(held_out.why)}.</p>"
        f'<p class="quiet">{html.escape(_legend(profiles))}</p>'
        f"<h2>Profiles</h2>{_table(manifest, profiles)}"
        f'<h2>Drawings</h2><div class="cards">{cards}</div>{_gallery(manifest, held_out)}'
        "</main></body></html>\n"
    )


def _legend(profiles: Sequence[Profile]) -> str:
    return (
        "A certified profile keeps its rule with probability 1 - delta over the draw of the calibration samples, for "
        "images drawn as these were; other images void it. Ranges are intervals of "
        f"{profiles[0].confidence:.0%} confidence for each figure by itself."
    )


def _table(manifest: Manifest, profiles: Sequence[Profile]) -> str:
    full = sum(manifest.costs())
    rows = "".join(f"<tr>{_cells(number, profile, full)}</tr>" for number, profile in enumerate(profiles, 1))
    titles = "".join(f"<th>{title}</th>" for title in HEADER)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(number: int, profile: Profile, full: int) -> str:
    certified = '<span class="no">no</span>'
    if profile.certified and profile.delta is not None:
        certified = f'<span class="yes">{1 - profile.delta:.0%} sure</span>'
    cells = (
        str(number),
        html.escape(profile.name),
        html.escape(rule_in_words(profile)),
        certified,
        ", ".join(f"{value:.4f}" for value in profile.thresholds),
        _range(profile.accuracy, 100, " %"),
        _range(profile.agreement, 100, " %"),
        _range(profile.macs, 1e-6, " M"),
        f"{profile.macs.value / full:.1%}" if full else "",
        f"{profile.samples:,}",
    )
    return "".join(f'<td data-title="{title}">{cell}</td>' for title, cell in zip(HEADER, cells, strict=True))


def _range(estimate: Estimate | None, scale: float, unit: str) -> str:
    if estimate is None:
        return "-"
    value, low, high = (scale * each for each in (estimate.value, estimate.low, estimate.high))
    return f"{value:.2f}{unit}<small>{low:.2f} to {high:.2f}</small>"


def _gallery(manifest: Manifest, held_out: HeldOut) -> str:
    if held_out.pixels is None:
        return ""
    traced = trace(held_out.stage_logits, manifest.exit.definition)
    order = np.argsort(traced.energies[:, 0], kind="stable")
    return "".join(
        f"<h2>{title}</h2><div class='images'>"
        + "".join(_picture(manifest, held_out, traced, held_out.pixels, int(row)) for row in rows)
        + "</div>"
        for title, rows in (
            ("Hardest for S0: the lowest energies", order[:SHOWN]),
            ("Easiest: the highest", order[::-1][:SHOWN]),
        )
    )


def _picture(manifest: Manifest, held_out: HeldOut, traced: Trace, pixels: NDArray[np.uint8], row: int) -> str:
    store = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels[row].transpose(1, 2, 0)))
    image.thumbnail((96, 96))
    image.save(store, "PNG", optimize=True)
    data = base64.b64encode(store.getvalue()).decode()
    answer = html.escape(manifest.labels[traced.classes[row, -1]])
    truth = "" if held_out.labels is None else html.escape(manifest.labels[held_out.labels[row]])
    energies = " → ".join(f"{value:.2f}" for value in traced.energies[row])
    verdict = answer if not truth or truth == answer else f'<span class="alarm">{answer}</span>, is {truth}'
    return f'<div><img src="data:image/png;base64,{data}" alt="{truth or answer}">{verdict}<br>{energies}</div>'
