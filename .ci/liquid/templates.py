"""Templates by the thousand, from a seed: every tag, filter and operator, odd values, dates."""

# ruff: noqa: E501
from __future__ import annotations

import random
from typing import Any, Callable

#: What the templates can name. Texts and numbers are kept apart, see `differences.py`.
DATA: dict[str, Any] = {
    "s": "Hello, World", "t": "  two  words ", "e": "", "u": "Žluťoučký kůň & 'ß' <b>\"x\"</b>",
    "l": "one two three four five six", "c": "a,b,,c,", "h": "<p class='x'>Hi<br>\n<i>you</i></p>",
    "n": 5, "z": 0, "m": -3, "f": 2.5, "g": -0.75, "w": 20.0, "big": 123456789, "tiny": 0.000001,
    "yes": True, "no": False, "sn": "42", "sf": "3.14", "sx": "12abc",
    "a": [3, 1, 2, 1], "b": ["pear", "Apple", "fig", "apple"], "none": [], "mix": [1, "a", True],
    "nest": [[1, 2], [3, [4]], []], "fl": [1.5, 2, -0.5],
    "o": {"k": "v", "n": 1, "deep": {"x": [10, {"y": "why"}]}, "size_": 3}, "eo": {},
    "rows": [
        {"name": "Pen", "price": 2, "on": True, "tag": {"id": "x"}},
        {"name": "ink", "price": 5.5, "on": False, "tag": {"id": "y"}},
        {"name": "Cap", "price": 2, "on": True, "tag": {"id": "x"}},
    ],
    "ts": 1483272000, "tss": "1700000000", "iso": "2024-02-29T10:05:09.123Z",
    "isoz": "2024-02-29T10:05:09+02:00", "day": "2021-01-05",
}  # fmt: skip

TEXTS = ["s", "t", "e", "u", "l", "c", "h", "sn", "sf", "sx"]
NUMBERS = ["n", "z", "m", "f", "g", "w", "big", "tiny"]
LISTS = ["a", "b", "none", "mix", "nest", "fl", "rows"]
OTHERS = ["yes", "no", "o", "eo", "missing", "nil", "blank", "empty", "true", "false"]
LITERALS = ["'x'", '"a b"', "'it\\'s'", '"\\n"', "''", "' '", '"<&>"', "'}}'"]
FIGURES = ["0", "1", "2", "3", "-1", "-2", "10", "1.5", "-0.5", "100", "7"]
PATHS = [
    "o.k", "o['n']", "o.deep.x[1].y", "o.deep.x.first", "rows[0].name", "rows.last.price", "a[1]",
    "a[-1]", "a.size", "s.size", "b.first", "b.last", "nest[1][1][0]", "o.size", "rows[n].name",
    "a[9]", "o.nope.more", "s[0]", "rows.first.tag.id", "a.0", "o[sn]", "'abc'.size", "none.first",
]  # fmt: skip
DATES = [
    "'Jan 5 2021'", "'2021-1-5'", "'Tue, 05 Jan 2021'", "'January 5, 2021 3:04 PM'",
    "'Tue Jan 05 2021 15:04:00 GMT+0200 (Central European Time)'", "'5 January 2021 10:11:12'",
    "'2021/01/05'", "'01/05/2021'", "'05-Jan-2021'", "'Jan 5'", "'2021-01-05 10:00'", "'soon'",
    "'2021-01-05T10:00:00-0530'", "'Tue, 05 Jan 2021 10:00:00 GMT'", "'2021-02-30'", "'13/13/2021'",
    "'Feb 29 2021 12:00 am'", "'2021-01-05T24:00:00Z'", "'5 Jan 99'", "'10:00 Jan 5 2021 PST'",
    "'Dec 31, 1999 23:59:59.5'", "'now'", "'today'", "'2021-01'", "'5. Januar 2021'",
]  # fmt: skip
FORMATS = [
    "%Y-%m-%d", "%A, %B %-d, %Y", "%a %b %e %H:%M:%S %Y", "%I:%M %p", "%l:%M %P", "%j|%U|%W|%u|%w",
    "%s", "%L|%N|%3N|%-N|%6N", "%z|%:z|%::z", "%+|%F|%D|%T|%G|%V|%%", "%^a %^B %#p %#b", "%q%C%y%h",
    "%05d|%-m|%_m|%010Y|%3S", "%c", "%x %X", "%k|%-k|%0e|%_H", "plain", "", "%E|%Od|%", "%n%t",
    "%d%q %b",
]  # fmt: skip
ZONES = ["'America/New_York'", "'Asia/Tokyo'", "0", "360", "-120", "'UTC'", "'Europe/Prague'"]


class Maker:
    """Makes templates from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pick = self.random.choice
        self.depth = 0
        self.local = 0

    def chance(self, share: float) -> bool:
        """Say yes, that often."""
        return self.random.random() < share

    def text(self) -> str:
        """A value that is a text."""
        return self.pick(LITERALS) if self.chance(0.4) else self.pick(TEXTS)

    def number(self) -> str:
        """A value that is a number."""
        return self.pick(FIGURES) if self.chance(0.5) else self.pick(NUMBERS)

    def list(self) -> str:
        """A value that is a list."""
        return (
            f"({self.pick('0123')}..{self.pick('2345')})" if self.chance(0.15) else self.pick(LISTS)
        )

    def value(self) -> str:
        """Any value."""
        kinds = [self.text, self.number, self.list, lambda: self.pick(OTHERS)]
        kinds.append(lambda: self.pick(PATHS))
        return self.pick(kinds)()

    def comparison(self) -> str:
        """A comparison, or a value that is true or not."""
        kind = self.random.randrange(6)
        if kind == 0:
            return self.value()
        if kind == 1:
            return f"{self.number()} {self.pick(['<', '>', '<=', '>='])} {self.number()}"
        if kind == 2:
            return f"{self.text()} {self.pick(['<', '>', '<=', '>='])} {self.text()}"
        if kind == 3:
            return f"{self.pick([self.list, self.text])()} contains {self.pick([self.text, self.number])()}"
        test = f"{self.value()} {self.pick(['==', '!='])} {self.value()}"
        return f"not {test}" if self.chance(0.1) else test

    def condition(self) -> str:
        """Comparisons, joined."""
        parts = [self.comparison()]
        while self.chance(0.3):
            parts += [self.pick(["and", "or"]), self.comparison()]
        return " ".join(parts)

    def filtered(self) -> str:
        """A value with filters that are meant for it."""
        kind = self.pick(list(FILTERS))
        value = {"text": self.text, "number": self.number, "list": self.list, "date": self.date,
                 "rows": lambda: "rows", "any": self.value}[kind]()  # fmt: skip
        out = value if not self.chance(0.1) else self.value()
        for _ in range(self.random.randint(1, 3)):
            name, after, *arguments = self.pick(FILTERS[kind])
            out += f" | {name}" + self.arguments(arguments)
            kind = after
            if kind not in FILTERS:
                break
        return out

    def arguments(self, makers: list[Callable[[Maker], str]]) -> str:
        """The arguments of a filter, the last of them sometimes left out or one too many."""
        given = [make(self) for make in makers]
        if self.chance(0.03):
            given.append("'extra'")
        end = "," if given and self.chance(0.03) else ""
        return (": " + ", ".join(given) + end) if given else ""

    def date(self) -> str:
        """A value that is a time, or nearly."""
        return (
            self.pick(DATES) if self.chance(0.7) else self.pick(["ts", "tss", "iso", "isoz", "day"])
        )

    def output(self) -> str:
        """An output; sometimes of an expression."""
        left, right = self.pick(["", "-"]), self.pick(["", "", "-"])
        inside = self.condition() if self.chance(0.15) else self.filtered()
        return "{{" + f"{left} {inside} {right}" + "}}"

    def body(self) -> str:
        """A few pieces in a row."""
        self.depth += 1
        parts = [self.piece() for _ in range(self.random.randint(1, 3))]
        self.depth -= 1
        return "".join(parts)

    def piece(self) -> str:
        """A text, an output or a tag."""
        if self.depth > 3 or self.chance(0.55):
            return (
                self.output() if self.chance(0.8) else self.pick([" ", "text ", "\n", "<b>", ", "])
            )
        return self.pick(TAGS)(self)


def _if(m: Maker) -> str:
    name = m.pick(["if", "if", "unless"])
    out = f"{{% {name} {m.condition()} %}}{m.body()}"
    while m.chance(0.25):
        out += f"{{%- elsif {m.condition()} -%}}{m.body()}"
    if m.chance(0.5):
        out += f"{{% else %}}{m.body()}"
    return out + f"{{% end{name} %}}"


def _case(m: Maker) -> str:
    out = f"{{% case {m.value()} %}}"
    for _ in range(m.random.randint(1, 3)):
        values = [m.value() for _ in range(m.random.randint(1, 3))]
        out += f"{{% when {m.pick([', ', ' or ']).join(values)} %}}{m.body()}"
    return out + (f"{{% else %}}{m.body()}" if m.chance(0.5) else "") + "{% endcase %}"


def _for(m: Maker) -> str:
    options = [m.pick(["limit:", "offset:"]) + m.pick(["0", "1", "2", "3", "-1", "n", " 2"])
               for _ in range(m.random.randint(0, 2))]  # fmt: skip
    if m.chance(0.2):
        options.append("offset:continue")
    if m.chance(0.2):
        options.append("reversed")
    m.random.shuffle(options)
    kinds = {option.split(":")[0]: option for option in options}
    inside = m.pick(["{{ i }}", "{{ forloop.index }}", "{{forloop.rindex0}}{{forloop.first}}",
                     "{% if forloop.last %}.{% endif %}", "{% break %}", "{{ i.name }}", "{{i[0]}}",
                     "{% if i == 2 %}{% continue %}{% endif %}{{ forloop.length }}"])  # fmt: skip
    items = m.pick([m.list(), m.list(), "o", "s", "missing", "e"])
    otherwise = f"{{% else %}}{m.body()}" if m.chance(0.3) else ""
    joint = m.pick([" ", ", "])
    head = f"{{% for i in {items} {joint.join(kinds.values())} %}}"
    return f"{head}{inside}{m.body()}{otherwise}{{% endfor %}}"


def _tablerow(m: Maker) -> str:
    options = [f"{name}:{m.pick(['0', '1', '2', '3', 'n'])}" for name in ("cols", "limit", "offset")
               if m.chance(0.4)]  # fmt: skip
    inside = m.pick(["{{ i }}", "{{ tablerowloop.col }}{{ tablerowloop.row }}", "{{tablerowloop.col_last}}",
                     "{{ tablerowloop.index }}{{ tablerowloop.col_first }}"])  # fmt: skip
    items = m.pick([m.list(), "missing", "s"])
    return f"{{% tablerow i in {items} {' '.join(options)} %}}{inside}{{% endtablerow %}}"


def _assign(m: Maker) -> str:
    name = m.pick(["v", "x", "n"])
    return f"{{% assign {name} = {m.condition() if m.chance(0.2) else m.filtered()} %}}{{{{ {name} }}}}"


def _capture(m: Maker) -> str:
    return f"{{% capture v %}}{m.body()}{{% endcapture %}}[{{{{ v | size }}}}]"


def _cycle(m: Maker) -> str:
    values = ", ".join(m.pick(["'a'", "'b'", "n", "1", "s"]) for _ in range(m.random.randint(1, 3)))
    group = m.pick(["", "", "'g': ", "n: "])
    tag = f"{{% cycle {group}{values}{m.pick(['', '', ',', ' '])} %}}"
    return f"{{% for i in (1..{m.pick('234')}) %}}{tag}{{% endfor %}}{tag}"


def _counter(m: Maker) -> str:
    name = m.pick(["q", "n", "r"])
    out = "".join(f"{{% {m.pick(['increment', 'decrement'])} {name} %}}" for _ in range(2))
    return out + f"{{{{ {name} }}}}"


def _liquid(m: Maker) -> str:
    name = m.pick(["p", "x"])
    return (f"{{% liquid\n assign {name} = {m.filtered()}\n if {m.comparison()}\n  echo {name}\n"
            f" else\n  # nothing\n  echo {m.value()}\n endif\n%}}")  # fmt: skip


def _quiet(m: Maker) -> str:
    return m.pick(["{% comment %}{{ x }}{% if %}{% endcomment %}", "{% # note %}", "{%- # a\n # b -%}",
                   "{% raw %}{{ x }} {% y %}{% endraw %}", "{%- comment -%} x {%- endcomment -%}",
                   "{% echo %}", "{% echo s | upcase %}"])  # fmt: skip


TAGS: list[Callable[[Maker], str]] = [
    _if, _if, _case, _for, _for, _tablerow, _assign, _assign, _capture, _cycle, _counter, _liquid, _quiet,
]  # fmt: skip


def _expression(m: Maker) -> str:
    tests = ["i.price > 2", "i.on", "i.name contains 'n'", "i.tag.id == 'x' and i.on", "not i.on",
             "i.price | plus: 1", "i.price == 2"]  # fmt: skip
    return (
        "'i', " + repr(m.pick(tests)).replace("\\'", "'")
        if m.chance(0)
        else '"i", "' + m.pick(tests) + '"'
    )


def _key(m: Maker) -> str:
    return m.pick(["'name'", "'price'", "'on'", "'tag.id'", "'nope'", "'tag'"])


def _keyed(m: Maker) -> str:
    return m.pick(["'name', 'Pen'", "'price', 2", "'on', true", "'tag.id', 'y'", "'on'", "'nope'",
                   "'on', false", "'price', 5.5"])  # fmt: skip


def _format(m: Maker) -> str:
    return repr(m.pick(FORMATS)) + (f", {m.pick(ZONES)}" if m.chance(0.3) else "")


def _style(m: Maker) -> str:
    return m.pick(["'ordinal'", "'ordinal', 'US'", "'plain'"])


T, N, V = Maker.text, Maker.number, Maker.value
#: By the kind of value: name, the kind it gives, and what makes its arguments.
FILTERS: dict[str, list[tuple[Any, ...]]] = {
    "text": [
        ("append", "text", T), ("prepend", "text", N), ("capitalize", "text"), ("downcase", "text"),
        ("upcase", "text"), ("escape", "text"), ("escape_once", "text"), ("xml_escape", "text"),
        ("strip", "text"), ("lstrip", "text"), ("rstrip", "text"), ("strip_html", "text"),
        ("strip_newlines", "text"), ("newline_to_br", "text"), ("normalize_whitespace", "text"),
        ("squish", "text"), ("truncate", "text", N), ("truncate", "text", N, T), ("truncate", "text"),
        ("truncatewords", "text", lambda m: m.pick("0123456")),
        ("truncatewords", "text", lambda m: m.pick("123"), T),
        ("replace", "text", T, T), ("replace_first", "text", T, T), ("replace_last", "text", T, T),
        ("remove", "text", T), ("remove_first", "text", T), ("remove_last", "text", T),
        ("replace", "text", lambda m: m.pick(["'o'", "' '", "','", "'l'"]), T), ("split", "list", T),
        ("split", "list", lambda m: m.pick(["','", "' '", "''", "'o'"])), ("size", "number"),
        ("slice", "text", lambda m: m.pick(["0", "1", "-1", "-3", "2", "50"])),
        ("slice", "text", lambda m: m.pick(["0", "1", "-3"]), lambda m: m.pick("01238")),
        ("url_encode", "text"), ("cgi_escape", "text"), ("uri_escape", "text"), ("url_decode", "text"),
        ("base64_encode", "text"), ("base64_decode", "text"), ("sha256", "text"), ("slugify", "text"),
        ("hmac_sha256", "text", T), ("number_of_words", "number"), ("first", "any"), ("last", "any"),
        ("default", "any", V), ("plus", "number", N), ("times", "number", N), ("json", "text"),
        ("lstrip", "text", T), ("strip", "text", lambda m: m.pick(["'H'", "' d'", "'xyz'"])),
        ("nosuch", "text"), ("append", "text"), ("date", "text", _format),
    ],
    "number": [
        ("plus", "number", N), ("minus", "number", N), ("times", "number", N), ("modulo", "number", N),
        ("divided_by", "number", N), ("divided_by", "number", N, lambda m: "true"), ("abs", "number"),
        ("ceil", "number"), ("floor", "number"), ("round", "number"),
        ("round", "number", lambda m: m.pick(["0", "1", "2", "3", "-1", "-2"])), ("at_least", "number", N),
        ("at_most", "number", N), ("append", "text", T), ("size", "number"), ("json", "text"),
        ("to_integer", "number"), ("plus", "number", T), ("default", "any", V), ("times", "number"),
        ("upcase", "text"), ("join", "text"), ("sum", "number"),
    ],
    "list": [
        ("join", "text"), ("join", "text", T), ("first", "any"), ("last", "any"), ("reverse", "list"),
        ("sort", "list"), ("sort_natural", "list"), ("uniq", "list"), ("compact", "list"),
        ("size", "number"), ("sum", "number"), ("concat", "list", lambda m: m.list()), ("push", "list", V),
        ("unshift", "list", V), ("pop", "list"), ("shift", "list"), ("map", "list", _key), ("json", "text"),
        ("slice", "list", lambda m: m.pick(["0", "1", "-2"]), lambda m: m.pick("0123")),
        ("slice", "list", lambda m: m.pick(["0", "1", "-2", "9"])), ("array_to_sentence_string", "text"),
        ("array_to_sentence_string", "text", T), ("append", "text", T), ("default", "any", V),
        ("has", "text", _keyed), ("inspect", "text"), ("jsonify", "text"),
    ],
    "rows": [
        ("map", "list", _key), ("where", "rows", _keyed), ("reject", "rows", _keyed),
        ("find", "any", _keyed), ("find_index", "number", _keyed), ("has", "text", _keyed),
        ("sort", "rows", _key), ("sort_natural", "rows", lambda m: "'name'"), ("group_by", "list", _key),
        ("where_exp", "rows", _expression), ("reject_exp", "rows", _expression), ("sum", "number", _key),
        ("find_exp", "any", _expression), ("find_index_exp", "number", _expression),
        ("has_exp", "text", _expression), ("group_by_exp", "list", _expression), ("json", "text"),
        ("reverse", "rows"), ("first", "any"), ("uniq", "rows"), ("size", "number"), ("compact", "rows"),
    ],
    "date": [
        ("date", "text", _format), ("date", "text", _format), ("date", "text", _format), ("date", "text"),
        ("date_to_string", "text"), ("date_to_long_string", "text"), ("date_to_rfc822", "text"),
        ("date_to_xmlschema", "text"), ("date_to_string", "text", _style),
        ("date_to_long_string", "text", _style),
    ],
    "any": [("default", "text", V), ("json", "text"), ("append", "text", T), ("size", "number"),
            ("join", "text"), ("upcase", "text"), ("escape", "text"), ("plus", "number", N)],
}  # fmt: skip


def templates(count: int, seed: int) -> list[str]:
    """So many templates, always the same for a seed."""
    maker = Maker(seed)
    return [maker.body() for _ in range(count)]


def _lines(number: int) -> list[str]:
    """Eight lines of a newsletter; those of another number are others."""
    return [
        f"<p>{{{{ s | upcase }}}}, {{{{ o.k{number} }}}} and {{{{ rows[{number}].name | default: 'nobody{number}' | escape }}}}</p>",
        f"{{% if n > {number} and s contains 'World{number}' %}}<b>{{{{ n | times: {number} }}}}</b>{{% else %}}no{{% endif %}}",
        f"{{% for row{number} in rows %}}<tr><td>{{{{ forloop.index }}}}</td><td>{{{{ row{number}.name }}}}</td>",
        f"<td>{{{{ row{number}.price | times: 1.{number} | round: 2 }}}}</td></tr>{{% endfor %}}",
        f"{{% assign total{number} = rows | map: 'price' | sum %}}{{{{ total{number} }}}} {{{{ iso | date: '%B %-d, %Y {number}' }}}}",
        f"{{% unless no %}}{{% case n %}}{{% when {number}, 2 %}}few{{% when 5 %}}five{{% endcase %}}{{% endunless %}}",
        f"<p>Plain text without anything in it, as most of a message is. {number}</p>",
        f"<a href='https://example.com/?q={{{{ s | url_encode }}}}'>{{{{ u | strip_html | truncate: {number} }}}}</a>",
    ]


def newsletter(number: int) -> str:
    """A message of 200 lines, hardly any of them twice, or in one of another number."""
    return "\n".join(line for part in range(25) for line in _lines(25 * number + part))
