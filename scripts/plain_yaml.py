"""Reads the part of YAML that this tree's deployment files keep to, so that their tests need no package.

Mappings and lists by indentation, flow lists and mappings within one line, quoted and plain scalars, folded text (`>-`)
and comments. Anything else is an error, never a guess. Scalars stay texts, as they are written.

**Invariant:** a key that is there twice is an error.
"""

import json
import re

KEY = re.compile(r'("(?:[^"\\]|\\.)*"|[^\s"\'\[\]{}#&*!|>%@`,][^#]*?):(?: +(.*))?$')
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"\[\]{},:#][^\[\]{},#]*?(?=\s*(?:[\[\]{},]|:\s|$))')


class PlainYamlError(ValueError):
    """A line that is not of this part of YAML."""


def load(text):
    """The document as dicts, lists and texts."""
    lines = [(len(line) - len(line.lstrip()), _bare(line)) for line in text.splitlines()]
    lines = [line for line in lines if line[1]]
    value, rest = _block(lines, 0)
    if rest:
        raise PlainYamlError(f"not expected here: {rest[0][1]}")
    return value


def _bare(line):
    """The line without indentation and comment."""
    outside = re.match(r'(?:"(?:[^"\\]|\\.)*"|[^"#]|(?<=\S)#)*', line.strip())
    return outside.group().rstrip() if outside else ""


def _block(lines, least):
    indent = lines[0][0] if lines else -1
    if indent < least:
        return "", lines
    return (_list if lines[0][1].startswith("- ") else _mapping)(lines, indent)


def _mapping(lines, indent):
    found = {}
    while lines and lines[0][0] == indent:
        match = KEY.match(lines[0][1])
        if not match:
            raise PlainYamlError(f"no key: {lines[0][1]}")
        key, inline = _scalar(match[1]), match[2]
        if key in found:
            raise PlainYamlError(f"twice: {key}")
        if inline == ">-":
            found[key], lines = _folded(lines[1:], indent)
        elif inline:
            found[key], lines = _flow(inline), lines[1:]
        else:
            # A list may stand below its key without being indented further.
            least = indent if lines[1:] and lines[1][1].startswith("- ") else indent + 1
            found[key], lines = _block(lines[1:], least)
    return found, lines


def _list(lines, indent):
    found = []
    while lines and lines[0][0] == indent and lines[0][1].startswith("- "):
        inside = lines[0][1][2:].lstrip()
        depth = indent + len(lines[0][1]) - len(inside)
        if inside == ">-":
            value, lines = _folded(lines[1:], indent)
        elif KEY.match(inside) and inside[0] not in "\"[{":
            value, lines = _mapping([(depth, inside), *lines[1:]], depth)
        else:
            value, lines = _flow(inside), lines[1:]
        found.append(value)
    return found, lines


def _folded(lines, indent):
    words = []
    while lines and lines[0][0] > indent:
        words.append(lines[0][1])
        lines = lines[1:]
    return " ".join(words), lines


def _flow(text):
    value, rest = _value(text)
    if rest.strip():
        raise PlainYamlError(f"more than a value: {text}")
    return value


def _value(text):
    text = text.lstrip()
    if text.startswith(("[", "{")):
        return _collection(text[0], text[1:].lstrip())
    if text.startswith('"') or not re.search(r"[\[\]{}]|, ", text):
        match = re.match(r'"(?:[^"\\]|\\.)*"', text)
        end = match.end() if match else len(text)
        return _scalar(text[:end]), text[end:]
    match = WORD.match(text)
    if not match:
        raise PlainYamlError(f"no value: {text}")
    return _scalar(match.group()), text[match.end():]


def _collection(kind, text):
    found, close = ([], "]") if kind == "[" else ({}, "}")
    while not text.startswith(close):
        match = re.match(r'"(?:[^"\\]|\\.)*"', text) or WORD.match(text)
        if kind == "{":
            key, text = _scalar(match.group()), text[match.end():].lstrip()
            if not text.startswith(":") or key in found:
                raise PlainYamlError(f"no key: {text}")
            text = text[1:].lstrip()
        if text.startswith(("[", "{")):
            value, text = _collection(text[0], text[1:].lstrip())
        else:
            match = re.match(r'"(?:[^"\\]|\\.)*"', text) or WORD.match(text)
            if not match:
                raise PlainYamlError(f"no value: {text}")
            value, text = _scalar(match.group()), text[match.end():]
        found.append(value) if kind == "[" else found.update({key: value})
        text = text.lstrip()
        if text.startswith(","):
            text = text[1:].lstrip()
        elif not text.startswith(close):
            raise PlainYamlError(f"not closed: {text}")
    return found, text[1:]


def _scalar(text):
    if text.startswith('"'):
        return json.loads(text)
    if text[:1] in "'&*!|>%@`":
        raise PlainYamlError(f"not of this part of YAML: {text}")
    return text.strip()
