"""What a page of HTML must be, checked with Python's own parser."""

from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "img", "source", "br", "hr", "col", "input"}


class Page(HTMLParser):
    """A page's elements, and what is wrong with it."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.faults, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        self.faults += [f"id {each!r} twice" for each in set(ids) if ids.count(each) > 1]
        for _, attributes in self.elements:
            self.faults += [
                f"{each!r} is no id" for each in attributes.get("aria-labelledby", "").split() if each not in ids
            ]
        self._check_head()
        self._check_headings()
        self._check_contents()

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len({*names}) < len(names):
            self.faults.append(f"<{tag}> has an attribute twice")
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "p" and "p" in self.open:
            self.faults.append("<p> in <p>")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID or not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)

    def _check_head(self):
        (html,) = self.of("html")
        if not html.get("lang"):
            self.faults.append("no lang")
        metas = {each.get("name") for each in self.of("meta")}
        if "viewport" not in metas or not any("charset" in each for each in self.of("meta")):
            self.faults.append("no viewport or charset")
        if len(self.of("title")) != 1:
            self.faults.append("not one title")
        if self.of("script"):
            self.faults.append("a script")

    def _check_headings(self):
        levels = [int(tag[1]) for tag, _ in self.elements if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
        if levels.count(1) != 1 or levels[0] != 1:
            self.faults.append("not one h1 first")
        if any(level > before + 1 for before, level in pairwise(levels)):
            self.faults.append(f"headings leave out a level: {levels}")

    def _check_contents(self):
        self.faults += ["th without scope" for each in self.of("th") if each.get("scope") not in ("row", "col")]
        self.faults += ["img without alt" for each in self.of("img") if not each.get("alt")]
        for tag, attributes in self.elements:
            for name in ("src", "href", "srcset"):
                if not attributes.get(name, "data:").startswith("data:"):
                    self.faults.append(f"<{tag}> needs {attributes[name][:80]!r}")
            self.faults += [f"<{tag}> has {name}" for name in attributes if name.startswith("on")]
