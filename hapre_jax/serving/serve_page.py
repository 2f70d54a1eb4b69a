"""The page of `hapre_jax.serve`: one document that loads nothing."""

import base64
import hashlib

from hapre_jax.reporting import html_page
from hapre_jax.serving.inference import Model

_FORM = """
<label id="drop" for="file">Drop a film here, or choose one
<input id="file" type="file"></label>
<p id="said" role="status" aria-live="polite"></p>
<section id="result" hidden>
<h2 id="answer"></h2>
<p id="flags" class="warning" hidden></p>
<table>
<thead><tr><th scope="col">class</th><th scope="col">probability</th></tr></thead>
<tbody id="shares"></tbody></table>
<p id="area" class="note"></p>
<div class="row" id="pictures"></div>
</section>
"""
_STYLE = """
#drop { display: block; padding: 2rem 1rem; text-align: center; cursor: pointer;
  border: 2px dashed var(--line); border-radius: .6rem; background: var(--band); }
#drop.over, #drop:focus-within { border-color: var(--accent); }
#file { display: block; margin: .8rem auto 0; max-width: 100%; }
#pictures figure { margin: 0; flex: 1 1 15rem; max-width: 24rem; }
"""
# Everything that is shown is set as text: names of files and classes are no HTML.
_SCRIPT = """
const one = id => document.getElementById(id);
const captions = {
  film: "The film, as the model gets it, and its key area",
  crop: "The key area, cut from all of the film's pixels",
  heat: "Where the classifier looks: hotter is more",
};
let last = 0;
async function ask(file) {
  if (!file) return;
  const mine = ++last;
  one("result").hidden = true;
  one("said").textContent = "Reading " + file.name + " …";
  let found;
  try {
    const reply = await fetch("answer?name=" + encodeURIComponent(file.name), {
      method: "POST", body: file,
      headers: {"Content-Type": "application/octet-stream"},
    });
    found = await reply.json();
  } catch (error) {
    found = {error: "There was no answer: is the program still running?"};
  }
  if (mine === last) show(file.name, found);
}
function show(name, found) {
  one("said").textContent = found.error || name;
  if (found.error) return;
  const percent = share => (100 * share).toFixed(1) + " %";
  const sure = found.calibrated === null ? "" :
    ", with a calibrated probability of " + percent(found.calibrated);
  one("answer").textContent = found.answer + sure;
  one("flags").hidden = !found.flags.length;
  one("flags").textContent = "This film is odd: " + found.flags.join(", ") +
    ". The answer may mean nothing.";
  one("shares").replaceChildren(...Object.entries(found.probabilities).map(
    ([name, share]) => {
      const row = document.createElement("tr");
      row.insertCell().textContent = name;
      row.insertCell().textContent = percent(share);
      return row;
    }));
  one("area").textContent = !found.key_area ? "" :
    "Key area in pixels of the film: top, left, bottom, right " +
    found.key_area.join(", ") + "; " + percent(found.kept) + " of the film.";
  one("pictures").replaceChildren(...Object.entries(found.pictures).map(
    ([kind, url]) => {
      const figure = document.createElement("figure");
      const picture = document.createElement("img");
      const caption = document.createElement("figcaption");
      picture.src = url;
      picture.alt = caption.textContent = captions[kind];
      figure.append(picture, caption);
      return figure;
    }));
  one("result").hidden = false;
}
one("file").addEventListener("change", event => ask(event.target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, event => {
    event.preventDefault();
    one("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") ask(event.dataTransfer.files[0]);
  });
"""


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# Nothing but this page's own script runs, and it speaks to this server alone.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; connect-src 'self'; "
    f"style-src 'unsafe-inline'; script-src 'sha256-{_digest(_SCRIPT)}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page(model: Model) -> str:
    """The document; of a model its classes and method are named."""
    config = model.config
    about = (
        f"Method {config.method} with {config.task.net}, trained on "
        f"{config.data.name}; classes: {', '.join(model.classes)}. JPEG, PNG, TIFF "
        "and DICOM are read. A film is sent to the program on this address alone and "
        "kept nowhere."
    )
    body = [
        html_page.paragraph("Not for clinical use.", kind="warning"),
        html_page.paragraph(about),
        f"<style>{_STYLE}</style>",
        _FORM,
        f"<script>{_SCRIPT}</script>",
    ]
    return html_page.page(f"{config.method}: answers to films", body)
