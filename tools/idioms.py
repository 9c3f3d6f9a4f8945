"""The idioms that are not used here, each with the plain term: the list that tools/words.py checks.

A pattern is a regular expression, matched without regard to case against running text: a line break
within a comment, a paragraph or a string counts as one space, and a name is read as its words
(``letGo``, ``LetGo`` and ``let_go`` are all "let go"). A pattern must not match innocent text: a
missed idiom costs less than a check that people learn to work around.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class In(enum.Flag):
    """Where a pattern applies."""

    COMMENT = enum.auto()
    DOCUMENT = enum.auto()
    STRING = enum.auto()
    NAME = enum.auto()
    FILE = enum.auto()
    TEXT = COMMENT | DOCUMENT | STRING
    NAMES = NAME | FILE
    ALL = TEXT | NAMES


class Idiom(NamedTuple):
    """A pattern that is not used here, and what to write instead."""

    pattern: str
    instead: str
    where: In = In.TEXT


END = r"(?=[.,;:)]|$)"
PARTICIPLE = (
    "acquired|added|allowed|captured|carried|copied|dense|due|exported|freed|given|kept|loaded"
    "|mapped|offloaded|pageable|pinned|refused|registered|released|replaced|resident|selected"
    "|sparse|tied"
)
HELD = "memory|mappings?|pages?|buffers?|references?|handles?|contexts?|objects?"

IDIOMS = [
    # Functions return, fill, query, check and report. They do not answer, tell or see.
    Idiom(r"\banswer(s|ed|ing)\b", "returns, fills `info`, fails with WB_ERR_X"),
    Idiom(r"\b(call|function|driver|library|kernel) (gave|gives)\b", "returns, provides"),
    Idiom(r"\bgives? (a|its|another) (status|entry|error)\b", "returns a status"),
    Idiom(r"\btold\b(?! apart)", "receives, is passed, is notified, is reported", In.ALL),
    Idiom(
        r"\bhow far (that|it|the work|this) (is|has come)\b",
        "reports progress, the bytes done",
    ),
    Idiom(r"\b(asks?|asking) the (kernel|driver|platform|system)\b", "queries the kernel"),
    Idiom(
        r"\b(driver|kernel|platform|group|meminfo|memavailable) is (not )?asked\b",
        "is queried",
    ),
    Idiom(r"\basked of (the|it|a)\b", "queried from the driver, required of the caller"),
    Idiom(
        r"\b(say|says|said|tells?|knows?|known) of (a|an|the|it|its|them|this|each|every)\b",
        "describes, reports, is known about",
    ),
    Idiom(r"\bsees? that\b", "checks that, verifies that"),
    Idiom(r"\b(is|are|was|were) (not )?looked at\b", "is checked, is inspected"),
    Idiom(r"\blook(s|ed|ing)? through\b", "scans, reads through"),
    Idiom(r"\bjudged?\b", "validates, checks, compares"),
    Idiom(r"\bsettles?\b", "decides, resolves, waits for, best effort", In.ALL),
    Idiom(r"\bwins? over\b", "overrides, takes precedence over"),
    Idiom(r"\bgoes by\b", "uses, relies on"),
    Idiom(r"\bthe words? for it\b", "its name"),
    Idiom(r"\b(NULL|0) for NULL\b", "returns NULL if the argument is NULL"),
    Idiom(r"\blet through\b", "NULL is a no-op, NULL is accepted"),
    Idiom(r"\blet be\b", "is left unchanged, is ignored"),
    Idiom(r"\b(is|are) (not )?taken here\b", "is supported, is not supported"),
    Idiom(r"\b(refused|errors?) by name\b", "fails with a specific status; the message names it"),
    Idiom(r"\bwithout a word\b", "silently, without output"),
    # A sentence has a subject that can be named.
    Idiom(
        r"(?<!user )\b(no|some|any)body\b", "name the subject: no thread, another owner, the caller"
    ),
    Idiom(r"\bwhoever\b", "name the subject: the caller that, the thread that"),
    Idiom(
        r"(^|(?<=[.:;,] ))who (calls?|gives?|holds?|locks|looks|makes?|needs?|owns?|unlocks"
        r"|waits?)\b",
        "name the subject: a caller that, the thread that, the owner",
    ),
    Idiom(
        r"\bwho (looks|(is|are) (looking|making|in it|meant))\b", "name the subject: the accessor"
    ),
    Idiom(r"\bwho need not\b", "nothing waits unnecessarily"),
    Idiom(rf"\bwhat (is|was|are|were) ({PARTICIPLE})\b", "say which: `tied parameters`"),
    Idiom(r"\bwhat (is|was) (already )?queued\b", "work queued on the stream, queued work"),
    Idiom(
        r"\bwhat (leaves|stays|moves|lies|lives|outgrows|outgrew|comes|goes)\b",
        "say which: `parameters that stay`, `live objects`",
    ),
    Idiom(r"\bwhat bec(o|a)mes? of\b", "the placement of, the result of"),
    Idiom(
        r"\bwhat (an engine|a caller|a platform) (says|asks|wants|is)\b",
        "describes one model parameter, options of",
    ),
    Idiom(r"\b(can|cannot|can't) be meant\b", "is certainly a mistake"),
    Idiom(rf"\b(is|are|was|were) meant{END}", "is selected, matches"),
    Idiom(r"\b(that|which|what) (is|are|was|were) none\b", "that was not returned by, is not a"),
    Idiom(
        r"(?<!there )\b(is|are|was|were) no (?!longer|more|less|fewer|other|greater|larger|later"
        r"|earlier|faster|slower|different|further|worse|better)[a-z]\w*",
        "is not a",
    ),
    Idiom(rf"\b(is|are|was|were) no more{END}", "no longer exists, was destroyed"),
    Idiom(r"\b(what|that|which) (is|are|was|were) (not )?there\b", "exists, is present, existing"),
    Idiom(rf"\bthat there (is|are){END}", "existing, available"),
    Idiom(r"\bwhere there (is|are) (none|one)\b", "say what is missing: `without a driver`"),
    Idiom(r"\bthere twice\b", "appears twice, is duplicated"),
    Idiom(rf"\bas (it is|they are|it was|it were){END}", "unchanged, unmodified"),
    Idiom(r"\b(be|been) had\b", "is available, cannot be allocated"),
    Idiom(r"\bfor want of\b", "because there is no"),
    Idiom(r"\ball the same\b", "anyway, still"),
    Idiom(r"\banew\b", "again"),
    Idiom(r"\b(wished|without a wish|the wish)\b", "requested, the request"),
    Idiom(r"\bsees? fit\b", "chosen automatically"),
    Idiom(r"\bas many as (serve|help)\b", "0 selects a default"),
    Idiom(r"\b(be|are|were) as many\b(?! as)", "are equal in number, have the same length"),
    Idiom(r"\bso many (bytes|rows|groups|columns|tokens|of)\b", "`bytes` bytes, this many"),
    Idiom(r"\bat (most|least) so (many|much)\b", "at most `limit` bytes"),
    Idiom(r"\bthe most (bytes|of|that)\b", "peak, maximum"),
    Idiom(r"\b(bytes|blocks|matrices|them) in all\b", "total bytes"),
    Idiom(r"\bcame about\b", "origin, how it was created"),
    Idiom(r"\bas (it|they|he) would be at best\b", "reason for the fallback; empty if none"),
    Idiom(r"\b(offloaded|nothing|device) is a warning\b", "downgrades WB_ERR_X to a warning"),
    Idiom(r"\b(platform|driver|device|kernel|their)('s)? truth\b", "capabilities and policy"),
    Idiom(r"\bas (the )?\w+( and (the )?\w+)? ha(s|ve) it\b", "as configured by"),
    Idiom(r"^0\.$", "Reserved; must be zero."),
    # Ownership and lifetime: owned, borrowed, released, freed.
    Idiom(r"\b(ours|theirs)\b", "owned by the library; borrowed, owned by the caller", In.ALL),
    Idiom(r"\b(lent|lends?|lending)\b", "borrowed", In.ALL),
    Idiom(r"\b(stays|is still|are still) the caller's\b", "the caller keeps ownership"),
    Idiom(rf"\bas long as it{END}", "valid until the handle is released"),
    Idiom(r"\bof (our|one's) own\b", "its own X, a separate X"),
    Idiom(r"\b(ha(s|ve|d)|by|under) (its|their) own names?\b", "use an explicit copy; name it"),
    Idiom(r"\bmakers?\b", "the creator, the producer (DLPack), the caller"),
    Idiom(r"\bgiv(e|es|en|ing) back\b|\bgave back\b", "frees, releases, unregisters, returns"),
    Idiom(
        r"\b(give|gives|given|giving|gave) (it|them|one|memory|the \w+|a \w+|its \w+) back\b",
        "frees, releases, unregisters, returns",
    ),
    Idiom(rf"\b({HELD}|it|they) (goes|go|went) back\b", "is freed, is released"),
    Idiom(rf"\b({HELD}) goes?({END}| (next|once|first|when|after)\b)", "is freed, is released"),
    Idiom(r"\bmay go (first|before|at once|in any order)\b", "may be released first"),
    Idiom(r"\b(let|lets|letting) go\b|\blets (it|them) go\b", "releases, released", In.ALL),
    Idiom(r"\bnowhere\b(?! else)", "has no backing", In.COMMENT | In.DOCUMENT | In.NAME),
    # Place: in place, contiguous, adjacent, after, past the end.
    Idiom(r"\b(where|as) (it|they) (lies?|lay)\b", "in place; existing memory cannot be moved"),
    Idiom(r"\b(lies?|lay|lying) side by side\b", "is contiguous, is adjacent"),
    Idiom(r"\bone behind the other\b", "consecutive, contiguous"),
    Idiom(r"\blies? behind\b", "follows, is at a higher address"),
    Idiom(r"\bbehind (its|the|their) (end|start|first|last|shape)\b", "past the end, after"),
    Idiom(r"\baddress behind\b", "one past the last address"),
    Idiom(
        r"\b(runs?|ran|queued|set|copied|goes?|comes?|filled) (it |them )?behind\b",
        "after; in stream order",
    ),
    Idiom(r"\bbehind (what|all that|everything)\b", "after the work queued on the stream"),
    Idiom(r"\b(a )?stretch(es)? of\b", "a contiguous range of"),
    Idiom(r"\broom\b", "space, free space, capacity, budget", In.ALL),
    Idiom(r"\boutgr(ow|ows|ew)\b", "does not fit, is oversized", In.ALL),
    Idiom(r"\bhangs on\b", "is attached to, is local to"),
    Idiom(r"\bcuts? off\b", "truncates, is truncated"),
    # Movement of bytes: copied, loaded, staged, in flight, transfer mode.
    Idiom(
        r"\b(what|bytes?|numbers|rows|chunks?|tensors?|weights?) (that )?"
        r"(is|are|was|were|could not be|not) brought\b",
        "copied, loaded",
    ),
    Idiom(r"\bbrought (in|into|to|away|by|aside|back)\b", "copied, loaded, staged"),
    Idiom(
        r"\bbring(s|ing)? (the |its |their )?(bytes|tensors?|numbers|rows|chunks?|them there)\b",
        "copies, loads",
    ),
    Idiom(r"\b(bring|brings|brought)\b", "copy, load, snapshot", In.NAME),
    Idiom(r"\b(under|on (its|their|the)) way\b(?! (out )?of)", "in flight, in progress"),
    Idiom(r"\b(the|a|no|its|their) way (in|out)\b(?! of)", "input, output, fallback"),
    Idiom(r"\bthe way back\b", "dequantizes, the reverse direction"),
    Idiom(r"\b(in )?which way\b", "direction, how"),
    Idiom(r"'s (own )?way (in|into|through)\b", "the copy of a unit into its slot"),
    Idiom(r"\bby way of\b", "through, staged through"),
    Idiom(r"\bcarriers?\b", "transfer mode", In.ALL),
    Idiom(r"\bbounced?\b", "staging", In.ALL),
    Idiom(r"\bstands? still\b", "is paused, is quiescent"),
    Idiom(r"\bdawdles?\b", "is delayed", In.ALL),
    Idiom(r"\b(streams?|waits?|ones?) that (is|are) over\b", "that have finished"),
    # Quantization: FP8, source type, non-finite, absolute maximum.
    Idiom(r"\b(in|to|from|becomes?) 8 bits\b|\b8 bits and back\b", "quantizes to FP8, in FP8"),
    Idiom(r"\b8-bit (numbers?|side)\b", "FP8 values, the FP8 side"),
    Idiom(r"\b(wide|narrow) (numbers?|sides?|types?|dtypes?)\b", "source type, FP8", In.ALL),
    Idiom(r"\bodd (numbers|values)\b|\b(refuses?|counts?) odd\b", "non-finite", In.ALL),
    Idiom(r"\bfinite sizes?\b|\bsizes of (all )?blocks\b", "absolute maximum (amax) of a block"),
    # The ring: slots, slot ring, slot packing, placement.
    Idiom(r"\b(seats?|seated|seating)\b", "slot, slot ring, assigns slots", In.ALL),
    Idiom(r"\bguests?\b", "slot request", In.ALL),
    Idiom(r"\bsits? on (a|its|the) neighbou?r\b", "concurrent units never overlap"),
    Idiom(r"\bdrafts?\b(?! (worker|models?)\b)", "placement, candidate", In.NAMES),
    # Names.
    Idiom(r"\bschemes?\b", "QuantizeOptions", In.NAMES),
    Idiom(r"\bpictures?\b", "svg, chart", In.NAMES),
    Idiom(
        r"^(keeping|own|waits|uses|walls|world|held|things?|team|rest|told)$",
        "name what the file holds, in the field's terms",
        In.FILE,
    ),
]
