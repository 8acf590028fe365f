"""What a writer says who abandons an answer and begins again: the cues of explicit restart language.

The cues follow the parts that such language has in English, not a list of phrases: an interruption ("wait", "oops"),
a negative judgement of one's own text ("none of that is true"), a first-person report of an error or of drifting
("I misread the question"), the announcement of a new start ("let me begin again"), an instruction to disregard
what was written ("scratch that"), a label ("second attempt:"), a rhetorical question ("what am I saying?"), and a
return to the question ("you asked about bees, not boats"). Each has a weight; `attempts.py` adds them up.
Patterns are matched against short pieces of text only, so that no input makes them slow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FLAGS = re.IGNORECASE
_STOP = r"(?= *(?:[,.!?:;…—–()\[\]*_~]|$)| +-|--)"
"""What follows a word that stands alone: punctuation or the end."""

_ADV = (
    r"(?:(?:all|also|so|just|quite|rather|pretty|even|still|really|very|simply|clearly|obviously|again|too|now|at all|"
    r"way|far|kind of|sort of|a bit|a little|nowhere near|not even|of course|in fact|by the way|\w{3,14}ly) ){0,3}"
)
_BE = (
    r"(?:is|was|are|were|'s|'re|s|has been|had been|have been|will be|must be|should be|may be|seems?|seemed|looks?|"
    r"sounds?|sounded|feels?|became|came out|went|has gone|had gone|'s gone|have gone|got|turned out|ended up|reads)"
)
_NOT = (
    r"(?:(?:is|was|are|were|does|do|did|has|had|have|could|would|ca|wo)n'?t(?: be)?|"
    r"(?:is|was|are|were|does|do|did|has|have|can|could|would) not(?: be)?|cannot(?: be)?|'s not|'re not|s not|"
    r"(?:could|can|would) hardly be|(?:could|can) (?:\w+ly )?(?:not|never) be)"
)
_OWN_NOUN = (
    r"(?:answers?|information|info|paragraphs?|sentences?|sections?|parts?|lists?|repl(?:y|ies)|response|draft|table|tag|function|code|"
    r"explanation|text|passage|version|poem|verse|calculation|figures?|result|formula|recipe|line|statement|claim|"
    r"advice|bit|examples?|attempts?|paragraph|summary|description|tangent|detour|digression|snippet|definition|"
    r"translation|solution|number|date|name|outline|story|letter|email|message|start|beginning|steps?|instructions|"
    r"arithmetic|maths?|reasoning|derivation|proof|conversion|query|command|stuff|business|thing|opening|output)"
)
_SAY = (
    r"(?:said|say|wrote|written|write|described|gave|given|told|explained|claimed|stated|typed|mentioned|posted|put|"
    r"listed|posted|suggested|produced|had|have)"
)
_OWN = (
    rf"(?:(?:none|most|much|all|half|every bit|any|both|some) of (?:that|this|it|those|these|the above|what i \w+)|"
    rf"(?:everything|nothing|anything|what|all)(?: that)? (?:i|i've|i have|i had|i was|i just)\b(?: just| \w+ly)? ?{_SAY}?(?: above| before| so far| there| just now| earlier)?|"
    rf"what (?:came|went) before|(?:the|everything|all) (?:above|preceding|foregoing)|"
    rf"(?:the|my|that|this|those|these) (?:(?:\w+|above|previous|last|first|preceding|whole|entire) ){{0,2}}?{_OWN_NOUN}"
    rf"(?: (?:above|before|so far|there|just now|i (?:just )?{_SAY}))?)"
)
_DEM = r"(?:all (?:of )?(?:that|this)|that last (?:bit|part|one|line)|that one|that|this|those|these|it)"
_TASK = (
    r"(?:question|topic|subject|task|point|prompt|request|query|matter(?: at hand)?|issue|problem|thread|track|"
    r"assignment|brief|point at hand|thing you asked|original \w+|actual \w+)"
)
_ASKED = r"(?:ask(?:ed|ing)?|want(?:ed)?|request(?:ed)?|need(?:ed)?|mean(?:t)?|after|look(?:ed|ing))"

_BAD_STRONG = (
    r"(?:wrong|incorrect|inaccurate|mistaken|nonsens\w*|gibberish|rubbish|garbage|drivel|gobbledygook|balderdash|"
    r"bogus|baloney|hogwash|garbled|irrelevant|unrelated|beside the point|off(?: the)? ?-?(?:topic|track|subject|mark|"
    r"base|piste|course|point|rails)|out of place|to pieces|sideways|astray|haywire|"
    r"off (?:on a|at a) tangent|a (?:complete |total )?(?:tangent|digression|detour|non sequitur|mix-?up|muddle|mess|"
    r"jumble|slip|blunder|brain ?fart)|back ?to ?front|the wrong \w+|upside down|embarrassing|useless|"
    r"no use|no good|no help|not (?:right|correct|it|what|an answer|about|helpful|relevant|on topic|the (?:right|answer|question|"
    r"topic|point|subject))|"
    r"(?:something|someone|somewhere|somebody) else|(?:an ?other|a(?: \w+)? (?:different|separate)) "
    r"(?:\w+ )?(?:subject|topic|thing|question|matter|story|issue|animal|person|place)|"
    r"(?:about )?(?:a|an|the) (?:\w+ )?(?:other|different|wrong|unrelated) \w+|"
    r"nothing to do with|out by|not for|(?:no|little) relevance|no relation|no bearing|no connection|for the wrong|"
    r"about (?:the wrong|something else|another)|badly|to be replaced|be replaced)"
)
_BAD_WEAK = (
    r"(?:false|untrue|a mistake|an error|a typo|no answer|not true|confus(?:ed|ing)|a lie|silly|stupid|absurd|"
    r"ridiculous|impossible|weird|odd|strange|bizarre|misleading|unhelpful|terrible|awful|off|dreadful|bad|horrible|"
    r"a lie|an accident|unclear|messy|a disaster|not good|no|out|contradict\w*)"
)
_FOLLOW = r"(?= *(?:[.,!?:;…—–)\]*_~]|$)| -| (?:and|so|but|because|since|here|there|i|let|for|again|in|of|on|sorry|as|the|your|you|from|this|that|altogether|lol|entirely|too|\w+ly|with|a|about|my|to|what|at|also|either|by)\b(?! (?:if|when|only))(?<!only))"
_NOT_STRONG = (
    rf"(?:(?:(?:seem|sound|look|feel)(?: to be| like)? )?right|correct|accurate|what (?:you|i|was|we|is)\b|it\b{_STOP}|an? (?:answer|reply)|about|relevant|related|on[- ]topic|"
    r"answer\w*|address\w*|make (?:any |much )?sense|belong|help(?: you|ful)?\b|concern|have anything to do|"
    r"have any (?:bearing|relevance)|the (?:right|answer|question|topic|correct|point|subject|thing|one|way to answer)|"
    r"respond\w*|even (?:close|about|the|an answer|related)|reverse|actually (?:answer|do|help))"
)
_NOT_WEAK = r"(?:true|work|add up|hold up|good|quite|really|add|fit|help|the case|hang together)"
_HAS_BAD = (
    rf"(?:(?:ha[sd]|have|had) {_ADV}(?:nothing|no (?:place|bearing|relevance|connection|relation|business)|little) ?\w*|"
    r"ma(?:de|kes?) (?:\w+ ){0,2}?(?:no|little|zero|absolutely no) sense|went (?:\w+ ){0,2}?(?:wrong|astray|off|sideways|to pieces|awry)|"
    r"gone (?:\w+ ){0,2}?(?:wrong|astray|off|sideways|awry)|"
    r"answers? (?:the wrong|another|a different|nothing|no)\b|miss(?:ed|es) the (?:point|mark)|miss(?:ed|es) your|"
    r"(?:belongs?|belonged) (?:\w+ )?(?:elsewhere|somewhere else|to|in) ?|came out (?:\w+ )?(?:wrong|garbled|backwards?)|"
    r"answers? (?:your question )?(?:not at all|none)|must be replaced|should be (?:replaced|ignored|disregarded|deleted)|"
    r"can be (?:ignored|disregarded)|got (?:away from me|mangled|garbled|mixed up|muddled|out of hand)|"
    r"wander(?:ed|s) off|went nowhere|fell apart|is going (?:badly|wrong|nowhere|off)|'s going (?:badly|wrong|nowhere))"
)

_AGAIN = (
    r"(?:over|again|afresh|fresh|anew|once more|once again|from scratch|from zero|from the (?:top|beginning|start|first)|"
    r"over again|one more time|a second time|properly|back at the (?:top|start|beginning)|with (?:a )?clean slate)"
)
_START = (
    r"(?:re-?start|re-?begin|start|begin|try|re-?try|redo|re-?do|rewrite|re-?write|redraft|recalculate|recompute|reanswer|"
    r"re-?answer|re-?work|take (?:it|this|that)|do (?:it|this|that)|write (?:it|this|that)|"
    r"answer(?: (?:it|this|that|you|your question|the question))?|go|"
    r"(?:start|begin|try|do|take|answer|write) (?:this|that|the|it|my|your) (?:\w+ )?"
    r"(?:answer|explanation|thing|one|question|list|reply|sentence|poem|whole thing|task)?|"
    r"(?:have|take|make|give (?:it|this|that|you)) (?:another|a second|a fresh|a new|one more|a better) "
    r"(?:go|try|attempt|shot|stab|start|run|crack|answer|one|pass)?)"
)
_WILL = (
    r"(?:let me|lemme|let's|lets|let us|i'?ll|i will|i shall|i'?d (?:better|like to|rather)|i had better|i(?: really)? "
    r"(?:need|ought|want|have|wish) to|i must|"
    r"i should|i'?m (?:going to|gonna|about to)|i am going to|allow me to|permit me to|time (?:to|for me to)|gotta|"
    r"i'?ve got to|i'?m|i am|please let me|may i|can i|might i|if i may|i can|better(?: to)?|best(?: to)?)"
)
_W_ADV = r"(?:(?:please|just|now|actually|instead|quickly|therefore|then|really|first|simply|rather|try to|try and|at once|immediately|at least|also|go ahead and|\w{3,12}ly) ){0,3}"
_QUESTION = (
    rf"(?:what you (?:actually |really |in fact )?(?:{_ASKED}|needed)\b(?: (?:me )?(?:about|for|to know))?|"
    rf"(?:the|your|this)(?: (?:actual|real|original|proper|very|initial|first))? {_TASK}\b(?: you \w+)?|"
    r"(?:the|your) actual \w+|topic|track|task|"
    r"(?:the|your) (?:beginning|start)|the top|square one|where (?:i|we) (?:started|was|were))"
)


@dataclass(frozen=True)
class Cue:
    """A kind of restart language: `weight` 2 is enough alone, 1 needs company.

    `own`: it speaks of this very answer or its question, so that neither a letter nor others' beliefs explain it.
    `anchored`: it counts only at the start of a piece, after interruptions and fillers. `first_person`: it cannot
    stand in a piece without a word of `FIRST_PERSON`.
    """

    name: str
    weight: float
    pattern: re.Pattern[str]
    own: bool = False
    anchored: bool = False
    first_person: bool = False


FIRST_PERSON = re.compile(
    r"\b(?:i|i'?(?:m|ve|ll|d)|let|lets|lemme|allow|permit|time|gotta|better|best|please|return|coming|going|myself)\b", _FLAGS
)


def _cue(name: str, weight: float, pattern: str, *, own: bool = False, anchored: bool = False) -> Cue:
    first_person = name.startswith("i-") or name in ("new-start", "properly", "answer-question", "keep-doing", "on-mind", "failed")
    return Cue(name, weight, re.compile(pattern, _FLAGS), own, anchored, first_person and name not in ("i-realise", "i-wonder"))


CUES: tuple[Cue, ...] = (
    # negative judgements of one's own text
    _cue("own-bad", 2.5, rf"\b{_OWN} (?:i \w+ )?{_BE} {_ADV}(?:{_BAD_STRONG}|{_BAD_WEAK}\b)", own=True, anchored=True),
    _cue("own-not", 2.5, rf"\b{_OWN} (?:{_NOT} {_ADV}(?:{_NOT_STRONG}|{_NOT_WEAK}\b|an?\b|\w+ (?:any|you))|{_HAS_BAD}|answers|helps)", own=True, anchored=True),
    _cue("own-subject", 2, rf"(?:the|my|that|this) (?:(?:above|previous|last|first|whole|entire|opening|preceding) ){{1,2}}?{_OWN_NOUN} "
         rf"(?:was|is) (?:about|for|on|from|describing)\b|"
         rf"(?:the|my|that|this) (?:answer|paragraph|reply|response|explanation|section) (?:was|is) (?:about|describing)\b", own=True, anchored=True),
    _cue("that-bad", 2, rf"\b{_DEM} ?{_BE} {_ADV}{_BAD_STRONG}{_FOLLOW}", anchored=True),
    _cue("that-not", 2, rf"\b{_DEM} ?{_NOT} {_ADV}{_NOT_STRONG}", anchored=True),
    _cue("that-has", 2, rf"\b{_DEM} ?{_HAS_BAD}", anchored=True),
    _cue("that-weak", 1, rf"\b{_DEM} ?(?:{_BE} {_ADV}{_BAD_WEAK}\b|{_NOT} {_ADV}{_NOT_WEAK})", anchored=True),
    _cue("bare-bad", 2, rf"(?:(?:all|totally|completely|utterly|entirely|just|plain|quite|way|so|still|again) )?"
         rf"(?:wrong(?: \w+)?(?: \w+)?|incorrect|off[- ]topic|off track|nonsense|rubbish|gibberish|not (?:even )?(?:true|right|correct|it|what|about)\b[^.!?]{{0,40}}|"
         rf"no good|way off|mixed (?:that )?up|mixed up my|(?:i )?lost (?:the|my) (?:thread|plot|way))(?: again| either| entirely| altogether)?(?= *(?:[.!,;…—–)\]]|$)| -)", anchored=True),
    _cue("dropped-i", 2, r"(?:(?:completely|totally|somehow|just|really) )?(?:mixed up|misread|misunderstood|mixed|got (?:sidetracked|side-tracked|lost|carried away|distracted|muddled|confused|off|that|my|the)|lost (?:the|my) (?:thread|train|plot|way|place|focus)|went off|"
         r"messed|muddled|confused|forgot (?:the|what|your)|took a wrong turn|wandered|drifted|strayed|slipped|botched|bungled|wrote the wrong|gave you the wrong|answered the wrong|had the wrong|screwed)\b", anchored=True),
    # first person: an error, a misreading, drifting
    _cue("i-misread", 2, r"\b(?:i|i've|i have|i had|must have|seem to have|i think i|i may have|i might have|i fear i)(?: \w+ly| just| have| seem to have| must have| appear to have| then| also| there| somehow)* "
         r"(?:misread|mis-read|misheard|misspoke|mis-?spoken|misunderstood|misinterpret\w*|misremember\w*|mis-?stated|misjudged|miscalculated|miscounted|mistook|"
         r"mistyped|misfired|mislaid|misled|mixed up|mixed|muddled|jumbled|garbled|conflated|confused|botched|bungled|fumbled|flubbed|goofed|"
         r"messed|slipped|blundered|screwed|stumbled|erred|drifted|wandered|strayed|veered|digress\w*|meandered|ramble[ds]?|swerved|derailed|"
         r"wander|drift|stray|lapsed|tripped|fluffed|overlooked the question|forgot (?:what|the|your|my)|lost (?:the|my|track|sight|focus|it)|"
         r"(?:went|gone) (?:\w+ ){0,2}?(?:off|astray|wrong|down (?:a|the|an)|sideways|on (?:a|an|about)|too far|overboard)|"
         r"missed (?:the point|your|the question|what)|made (?:(?:an?|some|several|two|the) (?:\w+ ){0,2}?)?(?:mistakes?|errors?|slips?|blunders?|mess|hash|muddle)(?! (?:for|as|of trusting))|"
         r"made (?:that|this|it) up|(?:jumped|leapt|shot|ran) (?:ahead|off|to|away)|"
         r"(?:got|gotten|get|was|been|am|became) (?:\w+ ){0,2}?(?:sidetracked|side-tracked|distracted|lost\b|off|carried away|derailed|mixed|muddled|confused|"
         r"muddled|turned around|ahead of myself|wrong|mistaken|in a muddle|tangled|wandering|drifting|digressing|rambling|"
         r"backwards|way off|completely off|on the wrong|thinking of (?:the|a|an|another)|looking at the wrong)|"
         r"got (?:that|this|it|those|the|my|these|everything|all)\b[^.!?]{0,30}?\b(?:wrong|backwards?|mixed|muddled|confused|the wrong|back to front|upside down|badly)|"
         r"got (?:the|that|this|your|my) \w+ (?:\w+ )?wrong)", own=False),
    _cue("i-am-off", 2, r"\b(?:i'?m|i am|i was|i've been|i have been|i seem to be|i keep|i kept|i started|i began)(?: \w+ly| still| now| just| quite| way| getting| going)* "
         r"(?:drift\w*|rambl\w*|digress\w*|wander\w*|stray\w*|veer\w*|meander\w*|off[- ](?:topic|track|subject|course|on|the)|(?:the )?wrong|"
         r"(?:talking|describing|explaining|writing|telling you|telling|answering|giving you|speaking|thinking|describing|babbling|going on|discussing|waffling|waffle) (?:\w+ ){0,3}?(?:about|the wrong|of|on|something|nonsense|a different|another|instead)|"
         r"(?:describing|explaining|answering|discussing) \w+|babbling|waffling|blathering|confus\w*|mixing|contradicting|repeating myself|lost\b|mistaken|talking nonsense|sidetracked|distracted|getting (?:off|sidetracked|carried))",
         own=False),
    _cue("i-wrong-thing", 2, r"\b(?:i|i've|i have)(?: have| just| find i| see i| realise i| realize i)*(?: \w+ly)? (?:gave|given|told|wrote|written|have|had|used|picked|took|taken|answered|quoted|named|described|listed|compared|solved|put|chose|cited|said|posted|reached for|grabbed|pasted|converted|did|calculated|swapped|switched)\b"
         r"[^.!?]{0,40}?\b(?:wrong|incorrect\w*|bad (?:information|info|advice|answer)|false (?:information|info)|misinformation|nonsense|irrelevant|unrelated|nonsense|off[- ]topic|backwards?|a different|something else|another question|by mistake|in error|mixed up|by accident|the other way)", own=True),
    _cue("i-not-answered", 2, r"\b(?:i|we)(?:'m| am|'ve| have)? ?(?:haven'?t|didn'?t|did not|have not|not|never|wasn'?t|was not|am not|failed to|still haven'?t)(?: \w+ly| even| yet)* "
         r"(?:answer\w*|address\w*|respond\w*|been answering|say(?:ing)? (?:a word|anything) about|touch\w* on|get to)(?: \w+){0,3} (?:question|you|your|asked|it|that)", own=True),
    _cue("i-meant", 2, r"(?:\w+,? )?(?:what )?i (?:really |actually |just )?meant (?!(?:to (?:add|mention|include|be)|by|it|that as)\b)", own=True, anchored=True),
    _cue("i-was-to", 2, r"\b(?:i|we) (?:(?:was|were|am|'m) (?:supposed|meant|asked|going|trying) to (?:be )?(?:\w+ ){0,1}?(?:talk\w*|explain\w*|answer\w*|describ\w*|tell\w*|discuss\w*|writ\w*|help\w*|giv\w*|list\w*|cover\w*)|should (?:be|have been) (?:talking|explaining|answering|describing|telling|writing|helping|giving|discussing|focus\w*)|(?:was|were|had been) (?:talking|thinking) (?:about|of))", own=True),
    _cue("i-wonder", 2, r"\b(?:i (?:don'?t|do not|can'?t|cannot|have no idea|'m not sure|am not sure)|i'?m not sure|no idea|not sure|goodness knows|who knows|god knows|heaven knows)(?: \w+)? ?(?:why|where|how|what|believe)(?: on earth)? (?:i (?:'m |am |was |just |even |started |brought |said|wrote|went|got|went|mentioned|did|put|ended|keep|kept|have|came)|(?:that|this|all that|those) (?:came|is coming|was about|has|got|is from|was))", own=True),
    _cue("nowhere", 2, r"(?:that|this|all that|all of that) (?:came|just came|slipped|popped|snuck|sneaked) (?:\w+ )?(?:out of nowhere|from nowhere|out of the blue|in|out)\b", anchored=True),
    _cue("failed", 2, r"\bi(?:'ve| have| had)?(?: \w+ly| just)? (?:failed|neglected|forgotten|managed not|omitted) to (?:\w+ )?(?:answer|address|respond|explain)", own=True),
    _cue("keep-doing", 2, r"\bi (?:keep|kept|keep on|am still|'m still|was still|seem to be|ended up|wound up|started|went on) (?:\w+ly )?(?:talking|writing|going|saying|describing|returning|getting|bringing|rambling|mentioning|explaining|telling|discussing|slipping|drifting|mixing|confusing)\b(?! (?:the|it|this) (?:until|for))", own=False),
    _cue("on-mind", 2, r"\bi (?:had|have|'ve got|must have had|still have) (?:\w+ ){1,3}on (?:my|the) (?:mind|brain)\b", own=True),
    _cue("error-above", 2, r"\b(?:there(?:'s| is| was| are| were) (?:an?|some|several|two) (?:\w+ ){0,2}?(?:mistakes?|errors?|slips?|mix-?ups?|bugs?|typos?|problems?) (?:in (?:what i|my|the above|that (?:answer|code|function|list|paragraph|calculation))|above|there\b)|"
         r"(?:notice|noticed|see|spot|spotted|found|find|caught|made|realise|realize) (?:that there(?:'s| is| was) )?(?:an?|the|my|some) (?:\w+ ){0,2}?(?:mistake|error|slip|mix-?up|bug|contradiction|problem) (?:in (?:what i|my|the above)|above|up there|there\b))", own=True),
    _cue("i-retract", 2, r"\b(?:i (?:take (?:that|it|this|all that|it all) back|stand corrected|retract|withdraw|(?:must|should|need to|have to) (?:correct|retract|withdraw|apologi[sz]e)|spoke too soon|meant to say)|"
         r"i'?(?:ll| will)? take (?:that|it|all of that|all that) back|let me (?:take (?:that|it|all that|all of that) back|unsay)|i(?:'ve| have) (?:just )?(?:contradicted myself|done it (?:again|a second time))|"
         r"i should(?:n't| not) have (?:said|written|gone|brought|mentioned|started)|i know better)", own=False),
    _cue("i-digress", 2, r"\b(?:i digress|i misspeak|i ramble|i('?m| am) (?:rambling|digressing|drifting|waffling|off topic))\b"),
    _cue("i-realise", 1, r"\b(?:i (?:just |now |suddenly )?(?:see|find|notice|noticed|realis\w*|realiz\w*|spotted|spot|caught) (?:now )?(?:that|i|i've|i'm|my|this|an?|the|myself)\b|(?:looking|reading|going|checking) (?:that |this |it )?(?:back|over|again)|on (?:checking|re-?reading|reflection|second thought)|re-?reading|come to think of it)"),
    # announcing a new start
    _cue("new-start", 2, rf"\b{_WILL} {_W_ADV}(?:(?:stop|go back|back up|pause|rewind|apologi[sz]e|return)(?: here| there)?(?: and|,) (?:\w+ly )?)?(?:{_START}(?: (?:this|that|it|all|the whole thing|my answer))? ?(?:all )?{_AGAIN}|re-?start\b|redo\b|re-?focus\b|re-?group\b|rewind\b|back ?track\b|back up\b(?! (?:your|the|to|with|any|all))|start (?:this|that) (?:\w+ )?over|"
         rf"re-?set\b{_STOP}|redirect myself|reorient|steer (?:back|this)|"
         r"(?:correct|fix|redo|rewrite|retract|withdraw|revise|re-?write|undo|erase|delete|discard|scrap|scratch|strike|forget|ignore|disregard|walk back|drop|unsay|amend|rectify|reverse|replace|clean up|walk back|throw out|throw away|toss) (?:all |all of )?(?:that|this|it|myself|my|what i|the above|everything|those)\b|"
         r"(?:try|retry|attempt) (?:answering|to answer|your question|once more|again(?! (?:with|in|for|on|the))|a different (?:answer|approach to your)|to (?:actually|properly|really|do better)|(?:that|this|it)(?: one)? (?:again|once more|properly|differently)(?! (?:with|in|for|on|the))|(?:that|this)(?= *[.!:—–]))|walk (?:that|this|it|all that) back|redirect (?:this|myself|my|us)|do better|stay on (?:topic|track)|"
         r"(?:pull|bring|steer|drag|get|collect) (?:myself|us|things|this)(?: back| together)?|(?:regroup|recover)\b|throw (?:that|this|it|all) (?:out|away)|"
         r"(?:actually |properly |really |finally )+(?:answer|address|respond|explain|do|get to|tackle|cover|describe)\b|"
         r"(?:have|take|make|give (?:it|this|that|you)) (?:another|a second|a fresh|a new|one more|a better) \w+|"
         r"give you (?:the|a) (?:\w+ )?(?:proper|real|right|correct|actual|better)|"
         r"(?:stop|stopping) (?:there|here|right there|myself|this))", own=True),
    _cue("properly", 2, rf"\b{_WILL} {_W_ADV}(?:re-?)?(?:state|phrase|explain|write|do|answer|tell|give|describe|start|say|calculate|compute|list|put|tackle|try|work)\b[^.!?:]{{0,40}}?\b(?:correctly|properly|afresh|anew|this time|right this time|the right way|from scratch|without the \w+)(?= *[.,:;!—–]|$)", own=True),
    _cue("starting-again", 2, rf"(?:re-?starting(?: my| the| this)?(?: answer| response)?|starting|beginning|trying|redoing|re-?doing|retrying|rewriting|recalculating|re-?writing|rewinding|resetting|taking (?:it|that|this)|answering|deleting|scrapping|discarding|backtracking|refocusing|correcting)(?: (?:this|that|it|all of that|myself|the answer))?(?: (?:and|then) \w+ing (?:it|this|that)?)? ?(?:{_AGAIN}|back)?{_STOP}", own=True, anchored=True),
    _cue("gerund-again", 2, rf"\b(?:starting|beginning|trying|writing it|doing (?:it|that|this)|answering|taking (?:it|this|that)) (?:this |that |it |all )?{_AGAIN}\b", own=True),
    _cue("imperative-again", 1, rf"(?:start|begin|try|once|one more time|from|back|here goes|here we go) ?(?:over|more|again|afresh|anew|fresh|once more|the top|the beginning|the start|scratch|to the beginning|to the start)?(?:,? then)?(?= *[:—–-])", own=True, anchored=True),
    _cue("here-is-real", 2, r"\bhere(?:'?s| is| are| comes| goes)[^.!?:]{0,25}?\b(?:(?:actual|real|correct|corrected|right|proper|true|better|revised|new|fixed|relevant|on-topic|second) (?:\w+ )?(?:answer|version|reply|response|one|attempt|explanation|try)|actually |really |what you (?:actually |really )?(?:asked|wanted|needed)|(?:an?|the|my) (?:answer to (?:your|the)|corrected|fixed|revised|working))", own=True),
    _cue("here-is-right", 1, r"\bhere(?:'?s| is| are)[^.!?:]{0,25}?\b(?:actual|real|correct|right|proper|true|better)\b", own=True),
    _cue("better-one", 2, r"(?:a |the |my )?(?:better|correct(?:ed)?|proper|real|right|actual|revised|second|new|fixed|true|improved|fresh|final|another|third|next)(?: \w+)? (?:one|answer|version|attempt|try|go|start|draft|take|shot|reply|response|explanation)s?(?: from scratch)?(?=,? *(?:[:—–]|coming up))", own=True, anchored=True),
    _cue("correct-thing", 1.5, r"(?:the |my )?(?:correct(?:ed)?|proper|real|right|actual|revised) (?:steps?|list|recipe|instructions|code|function|poem|calculation|solution|result|figure|number|order)s?(?=,? *[:—–])", own=True, anchored=True),
    _cue("label", 2, r"(?:correction|erratum|correcting myself|self correction|edit|mistake|error|oops|retraction|self-correction|corrected|revised|revision|re-?do|do-?over|mulligan|take (?:two|2|three|3)|(?:attempt|try|round|version) (?:two|three|2|3|number two|no\.? ?2)|"
         r"(?:second|2nd|third|3rd|new|another|final|last|next|one more|fresh) (?:attempt|try|go|take|start|shot|stab|round)|fresh start|clean slate|blank slate|once (?:more|again)(?:,? (?:from|then)[^.!?:]{0,25})?|again,? from the (?:top|start|beginning)|(?:and |now )?back (?:on|to) (?:track|topic|task|the question|your question|the task|the topic|the subject|square one|the beginning|the start)|"
         r"(?:re-?starting|starting over|rewind|reset|restart|back ?space|undo|re-?boot|control[- ]z|ctrl[- ]z|delete|scratch|backtrack|do over))(?: at hand| itself| you asked)?(?=[*_]* *(?:[:.!;—–,]| -))", anchored=True),
    _cue("start-label", 2, r"(?:(?:start(?:ing)?|begin(?:ning)?|try(?:ing)?) (?:over|again|afresh|anew|fresh|once more)|from the (?:top|beginning|start)|re-?try|take it from the top|once more from the \w+)(?:,? (?:then|now|so))?(?=[*_]* *:)", own=True, anchored=True),
    _cue("start-bare", 1, r"(?:start(?:ing)?|begin(?:ning)?) (?:over|again|afresh|anew|fresh)(?= *[.!,—–-]| *$)", own=True, anchored=True),
    _cue("label-comma", 1, r"(?:so,? )?(?:once again|once more|again|properly this time|this time)(?= *[:,])", anchored=True),
    _cue("from-top", 1, r"\b(?:from (?:the (?:top|very beginning|beginning|start)|scratch)(?:,? then| again| once more)?|properly this time|for real this time|on topic this time)(?= *[:.,;!—–-]|$)"),
    # drifting, told from outside
    _cue("was-about", 1.5, r"(?:that|this|all that|it all|those|most of that)(?: \w+ly| all| last bit| last part| part| bit)? (?:was|were) (?:all |really |meant |only )?(?:about|for|from|to do with) (?!\d)[^.!?]{2,60}", anchored=True),
    _cue("i-wrote-about", 1, r"\bi (?:just )?(?:wrote|went on|talked|rambled|answered|was on|was going on|spoke|waffled)(?: \w+)? (?:about|on)\b"),
    _cue("beside-point", 1.5, r"\b(?:(?:is|are|was|were|'s|all|completely|totally|entirely|utterly|wholly|quite|rather|somewhat|mostly) (?:beside the point|irrelevant|unrelated|off[- ]topic|off the point|wrong|besides the point)|has no place (?:here|in)|have no place (?:here|in)|not (?:helpful|useful|relevant|on topic)(?= *[.,!]))", anchored=True),
    _cue("enough", 2, r"(?:enough (?:of (?:that|this)|about|with the|already about)|(?:that'?s )?(?:enough|too much) (?:rambling|digressing|digression|of a tangent|of a detour|nonsense|about)|so much for (?:the |that |my )?(?:\w+ )?(?:tangent|digression|detour))\b", anchored=True),
    _cue("so-much-for", 1, r"(?:so much for|hold that|leaving|leave|setting|set)(?: \w+){1,2}(?: aside)?(?= *[.,:;])", anchored=True),
    _cue("mind-wandered", 2, r"(?:my|the) (?:\w+ )?(?:train of thought|mind|brain|thoughts?|attention|focus|pen|keyboard|fingers?|memory|answer|circuits|wires|notes)(?: \w+)? (?:has |have |had |just |got |is |was |went |must have )*(?:derailed|wandered|wandering|drifted|drifting|strayed|crossed|slipped|gone|lost|jumped|off|mixed|scrambled|astray|elsewhere|blank|ran|run|failed|left)\b", own=True, anchored=True),
    _cue("own-drifts", 2, r"(?:that|this|the|my) (?:\w+ )?(?:paragraph|answer|sentence|reply|response|text|section|explanation|draft|list|statement|claim) (?:has |have |had |is |was |just |got |must be |should be |needs to be )*(?:drift\w*|wander\w*|stray\w*|derail\w*|ran away|run away|retracted|withdrawn|deleted|struck|scrapped|redone|rewritten|corrected|replaced|gone|went|lost|escaped|veered|got away|a mess|must go|needs? (?:redoing|rewriting|replacing|correcting|a redo))\b", own=True, anchored=True),
    _cue("i-begin-again", 2, rf"\b(?:shall i|should i|i|may i|can i|and i|so i) (?:will |shall |'ll |must |am |here(?:by)? )?(?:re-?)?(?:begin|start|try|answer) (?:this |it |that |my answer )?(?:{_AGAIN}|again)(?= *[.,:;!?—–)\]]|$)", own=True),
    _cue("did-i-say", 2, r"\bdid i (?:really |just |seriously |actually )?(?:say|write|mention|type|claim|put|call)\b", own=True),
    _cue("what-has-x", 2, r"\bwhat (?:does|do|has|have|did|is|are|was|on earth does) [^.!?]{1,40}?(?:\bdo(?:ing)? with\b|\bdoing (?:here|in (?:this|my|there))\b)[^.!?]{0,40}\?", own=True),
    _cue("why-x", 1, r"(?:why|how come|where'?s) (?:\w+ ){0,2}?\w+\?", anchored=True),
    _cue("reconsider", 2, rf"\b{_WILL} {_W_ADV}(?:re-?consider|re-?think|think (?:again|(?:this|that|it) (?:over|through) again)|re-?assess|re-?examine|re-?calculate|re-?compute|re-?evaluate|look again|wipe the slate)\b", own=True),
    _cue("double-check", 1, rf"\b{_WILL} {_W_ADV}(?:double-?check|re-?check|check that|verify that|re-?read)\b", own=True),
    _cue("owe-correction", 2, r"\b(?:a (?:quick |small |brief |major )?(?:correction|retraction) (?:is in order|is needed|is due|is called for|here)|i owe you (?:a correction|an apology|a proper|a better|the)|i have to (?:correct|apologi[sz]e)|i need to apologi[sz]e)", own=True),
    _cue("excuse-detour", 2, r"(?:forgive|excuse|pardon|sorry about|ignore|apologies for) (?:the|my|that|this) (?:\w+ )?(?:detour|digression|tangent|ramble|rambling|wandering|aside|interruption|mix-?up|nonsense|muddle|slip|confusion|drift|drifting|sidetrack|excursion|false start)\b", own=True, anchored=True),
    _cue("tangent-over", 2, r"(?:(?:tangent|digression|detour|rant|ramble|aside|excursion) (?:over|ends|ended|aside|finished)|(?:end of|end) (?:the |that |my )?(?:tangent|digression|detour|rant|ramble)|(?:but |and )?(?:enough|no more) (?:rambling|digressing|wandering|waffling|digressions?|waffle))\b", anchored=True),
    _cue("i-asked-gave", 2, r"\byou (?:\w+ )?(?:asked|wanted|meant|needed)\b[^.!?]{1,60}?\b(?:and|but|yet|while|whereas)(?: here)? (?:i|i'm|i've|my|that|this|what i)\b", own=True),
    _cue("what-you-asked-was", 2, r"(?:(?:so|now|and),? )?(?:what you (?:actually |really )?(?:asked|wanted|meant)(?: for| to know| me)? (?:was|is)|as (?:to|for) what you (?:asked|wanted)|your (?:actual |real )?question,? (?:again|then)|the thing you asked)\b", own=True, anchored=True),
    _cue("your-question", 1.5, r"(?:(?:anyway|right|now|so|ok|okay),? )*(?:to |on to |about )?your (?:actual |real |original )?question(?: (?:about|on|again|was)\b|(?= *[.:]))", own=True, anchored=True),
    _cue("steering-back", 1.5, r"(?:steering|coming|circling|swinging|bringing (?:it|this|us)|turning|heading|moving) (?:this |it |us |me )?back (?:to|on)\b", anchored=True),
    _cue("stopping", 1.5, r"(?:stopping|pausing|halting) (?:here|there|right there|right here|myself|this)\b|\bi'?m (?:going to|gonna) (?:stop|quit) (?:and|there|here)\b", anchored=True),
    _cue("throw-out", 1, r"(?:throw|toss|cross|rub|wipe|chuck|bin|hold|trash) (?:that|this|it|all that|that thought)(?: away| out| off| thought)?(?:,? please)?(?= *[.,!;—–]|$)", anchored=True),
    _cue("crossing-out", 2, r"(?:crossing|rubbing|wiping|tossing|throwing|striking|taking|blotting|editing|binning|scratching|undoing|walking) (?:that|this|it|all that|all of that)(?: \w+)?(?: out| away| back| off)?(?= *[.,:!;—–]|$)", own=True, anchored=True),
    _cue("here-again", 2, r"here (?:i|we) go again\b|here goes again|here(?:'?s| is| comes| are) (?:another|my (?:second|next|new|real|actual)|a (?:second|new|fresh|better|corrected|proper|revised|cleaner)|an actual|the (?:second|new|revised|corrected|proper)) (?:attempt|try|go|version|answer|shot|start|one|take)\b|here it is (?:again|corrected|without|properly|once more)|here(?:'?s| is) what (?:i|it) should have", own=True, anchored=True),
    _cue("should-have-said", 2, r"\bi should have (?:said|written|told|explained|answered|started|described|put|been|begun|given|talked|stuck|kept)\b", own=True),
    _cue("off-again", 2, r"\bi'?m (?:off|at it|doing it|there|going off|wandering off) again\b|\b(?:there|off) i (?:go|went)(?: again)?\b", own=True),
    _cue("turn-label", 1, r"(?:anyway|right|now|so|okay|ok|anyhow)(?:,|:) ?(?:the |your |to )?\w+(?: \w+)?(?= *[.:!])", anchored=True),
    _cue("lucky", 2, r"(?:(?:second|third|2nd|3rd) time(?:'s)? (?:lucky|the charm|around)|(?:my )?answer,? (?:second|again|take|attempt|corrected|revised|version)[^.!?:]{0,20}(?=:)|(?:first|second|third|new|fresh|revised|corrected) (?:answer|version|attempt|draft|try)(?= *[:.])|from the (?:top|beginning|start)(?:,? then|,? again)?(?= *[.:!—–]|$)|(?:from|at|back to) (?:scratch|zero|square one)(?:,? then| again)?(?= *[.:!—–]|$))", own=True, anchored=True),
    _cue("ignore-me", 2, r"(?:ignore|don'?t mind|disregard|excuse|forgive|never ?mind|pay no attention to) me(?= *[.,!;:—–]|$)|(?:nm|nvm|jk|brb)\b(?= *[.,!;:—–]|$)|wrong (?:convo|chat|window|tab|one|thing|thread|file|note|page|notes|card|script|channel|animal|place|person|way|end)(?= *[.,!;:—–)\]]|$)|(?:wtf|idk why)\b", anchored=True),
    _cue("never-mind", 1, r"(?:never ?mind|forget it|whatever|back up|start over|start again|begin again|go back)(?= *[.,!;:—–)\]]|$)", anchored=True),
    _cue("x-not-y", 1.5, r"(?:that|this|those|these|it|they)(?:'?s| is| was| are| were|'re) (?:about |for |how |all )?(?:\w+ ){0,3}\w+,? (?:and )?not (?:for |about |the |an? |how )?\w+(?= *[.,!;:—–]|$)", anchored=True),
    _cue("make-that", 1.5, r"(?:make|read) that (?:an? |the )?\w+|(?:that|this|it) should (?:be|read|have been|say|have said)\b|\w+, not \w+(?= *[!—–]| *$)", anchored=True),
    _cue("turned-into", 1.5, r"(?:that|this|it|all this)(?: answer| reply)?(?: has|'s)? (?:turned|turning|become|became|morphed|slid|slipped) (?:into|to) ", anchored=True),
    _cue("wont-do", 2, r"(?:that|this|it) (?:won'?t do|will not do|will never do|can'?t stand|cannot stand|isn'?t working|is not working|never happened|didn'?t happen|needs (?:redoing|rewriting|another|a redo|work|fixing|correcting))\b", anchored=True),
    _cue("put-right", 2, rf"\b{_WILL} {_W_ADV}(?:put (?:that|this|it|things) (?:right|straight|differently and)|set (?:that|this|it|things|the record) (?:right|straight)|clear (?:that|this) up|make (?:that|this|it) right|sort (?:that|this) out|undo that|pretend|stop (?:rambling|talking|writing|here|now)|leave (?:that|the|rice) (?:\w+ )?(?:aside|there|behind|out)|drop the|forget (?:about )?the|get to (?:the|your)|cut (?:that|this|to)|keep to)\b", own=True),
    _cue("what-i-should", 2, r"what i (?:should|ought to|need to|meant to|was meant to|was supposed to|want to|wanted to|am supposed to) (?:be |have )?\w+", own=True, anchored=True),
    _cue("jumped-gun", 2, r"\bi (?:jumped the gun|spoke too soon|dropped the ball|lost the plot|put my foot|got ahead|went blank|had a (?:slip|lapse|moment|glitch)|have no idea what (?:that|i)|was miles (?:off|away)|was elsewhere|was away with|was daydreaming|was dreaming|was on autopilot|crossed (?:my |some )?wires|(?:have|'ve|had) (?:crossed|tangled|mixed))\b"),
    _cue("try-instead", 1.5, r"(?:try|read|use|take|here is|here's|have) (?:this|that|the following|this one) (?:instead|in its place)\b|instead,? (?:here|let me|try this)|in its place\b|second thoughts?(?= *[:,.])", anchored=True),
    # telling the reader to disregard it
    _cue("scratch", 2, rf"(?:please )?(?:(?:scratch|strike|scrap|nix|don'?t (?:listen to|mind|believe|trust)|un-?do|axe|bin|kill|nvm|nevermind|never mind|delete|erase|cancel|forget|ignore|disregard|skip|discard|retract|drop|toss)(?: all(?: of)?| both of)? (?:that|this|those|these|it all|it|all|both|the above|everything)(?:,? (?:last|one|whole|previous|entire|first|all|too|bit|part|sentence|line|please|bits?|parts?|{_OWN_NOUN}))*{_STOP}|"
         rf"(?:scratch|strike|scrap) (?:that|all that|all of that)(?= (?:and|lol|it'?s|i|i'?ll|i'?m|let|we|no|for|you|my|the|sorry|start|back|to|from)\b))", anchored=True),
    _cue("ignore-own", 2.5, rf"(?:you (?:can|should|may|must) |(?:so |and )?please |kindly )?(?:scratch|strike|scrap|forget|ignore|disregard|skip|discard|delete|drop|overlook|never ?mind|pay no (?:attention|heed) to|pretend|do not follow|don't follow|pretend you never saw|pretend i (?:never|did not|didn't))(?: about)?(?: all(?: of)?| both)? "
         rf"(?:what i|everything (?:i|above|so far|before)|the (?:above|foregoing|preceding)|(?:the|my|that|those|this) (?:(?:last|previous|above|first|whole|preceding|opening|entire|earlier) ){{1,3}}\w+|(?:all )?(?:the |that |those |this |my )(?:\w+ ){{0,2}}?(?:business|nonsense|stuff|part about|bit about|tangent|digression|rubbish|gibberish|answer|reply|response|paragraph|sentence|draft|table|explanation|rambling|ramble)|you (?:never|didn't) (?:saw|read|see|heard)|i (?:never|didn't))", own=True, anchored=True),
    _cue("skip-both", 2, r"\b(?:please )?(?:skip|ignore|disregard|forget|discard|delete|don'?t (?:listen to|mind|follow|use|believe|trust)|do not (?:follow|use|believe|trust)) (?:that last \w+|any of (?:that|the above)|both|all of (?:that|it|the above)|all that|everything (?:above|i|so far|before)|the above|what i|my (?:last|previous|first|earlier))\b", own=True, anchored=True),
    _cue("forget-the", 1, r"(?:forget|never ?mind|ignore|disregard|not|no|enough (?:about|of|with)|drop|scrap|strike) (?:about )?(?:(?:all )?(?:the|that|those|my|this|these) )?\w+(?: \w+)?(?= *[,.!;:—–-])", anchored=True),
    _cue("sorry-for", 2, r"(?:(?:i'?m |i am |so |very |oh )*sorry|(?:my )?apologies|i (?:do )?apologi[sz]e|forgive me|excuse me|pardon)(?: \w+)? (?:for|about) (?:(?:the|any|my|that|this|all that|all the|going|getting|\w+) )?(?:earlier |above |previous |whole |\w+ )?(?:confusion|mix-?up|mistake|error|detour|digression|tangent|ramble|rambling|nonsense|wandering|drifting|digressing|straying|off (?:topic|track|on)|sidetracked|slip|muddle|gibberish|derail\w*|rant|aside|misreading|misunderstanding|false start|wrong \w+)", anchored=True),
    _cue("my-bad", 2, rf"(?:my (?:bad|mistake|error|fault|apologies|slip)|brain (?:fart|freeze|glitch|slip)|slip of the (?:tongue|pen|keyboard)|silly me|how silly of me|false start|wrong (?:answer|topic|question|list|one|tag|way round|way|track|subject|file|recipe|thing)|mea culpa|nvm|red herring|major tangent|tangent alert)(?: there| here| again| entirely)?{_STOP}", anchored=True),
    # asking oneself
    _cue("self-question", 2, r"\b(?:what (?:am i|was i|on earth am i|in the world am i|the \w+ am i)(?: even)? (?:saying|doing|talking|on about|thinking|writing|going|rambling|describing|telling)|"
         r"why (?:am|was|did) i\b[^.!?]{0,60}|(?:how|when) did (?:i|we|that|this) (?:get|end up|wind up|come|turn|become|start)|where (?:did|does|is|was|on earth did) (?:that|this|all that|it all|these|those|all this) (?:come|came|going|go)|where am i going|what (?:is|was) (?:that|this|all that|all this)(?= *[?!])|how did \w+ get in(?:to)? (?:here|there|this))", own=True),
    _cue("where-was-i", 1, r"\b(?:where (?:was i|were we)(?= *[?.!,])|what was the question|what did you ask|what was i saying)"),
    # the question, once more
    _cue("you-asked", 2, r"\b(?:(?:but|wait|when|whereas|while|since|no|oh|sorry|and|because|instead)\W+|^)(?:wait,? )?you(?:'d| had| actually| really| were| just| only)* (?:asked|wanted|meant|asking|requested|said|were asking)(?: me)?\b[^.!?]{0,80}?(?:\bnot\b|\binstead\b|\brather than\b|!|\bso\b)", own=True),
    _cue("correct-answer", 1.5, r"the (?:actual|real|correct|right|true|proper) answer is (?:this|as follows|below|the following)", own=True, anchored=True),
    _cue("you-never-asked", 2, r"\b(?:you|nobody|no one) (?:didn'?t|did not|never|hadn'?t|weren'?t|were not)(?: \w+ly| even)? (?:ask\w*|want\w*|request\w*|mean)\b", own=True),
    _cue("question-was", 2, r"(?:the|your)(?: (?:actual|real|original))? (?:question|task|topic|subject|request|prompt)(?: here| at hand| you asked)? (?:was|had been|concerned|had nothing)\b(?! (?:easy|hard|a good))", own=True, anchored=True),
    _cue("we-were", 2, r"we were (?:\w+ )?(?:talking|speaking|discussing|on) ?(?:about|of)?\b", own=True, anchored=True),
    _cue("you-meant", 1.5, r"(?:oh,? |ah,? |wait,? )?(?:you(?:'d| had| actually| really| were)* (?:asked|wanted|meant|asking)|your question (?:was|is|concerned)|the question (?:was|is|concerned|asks|asked)|(?:what )?you (?:actually |really )?(?:asked|wanted)(?: was| is)?|the (?:task|topic|subject) (?:was|is))\b", own=True, anchored=True),
    _cue("when-you-asked", 2, r"\b(?:when|whereas|while|but|and) (?:you|your question|the question|what you)(?: actually| really| had| were|'d)* (?:asked|wanted|meant|was|were|is)\b|\binstead of (?:answering|addressing|explaining|helping|your|the question|what you)", own=True),
    _cue("not-your-question", 2, rf"\b(?:not (?:at all )?(?:what you|the question you|your question|what i was asked|what was asked|the topic|what i meant)|none of (?:this|that|it|which) (?:answers|helps you|has (?:anything|any)|(?:is|was) (?:about|relevant|what|related|an? answer|your|even)|concerns|addresses)|(?:isn't|wasn't|ain't|'s not) (?:at all |really |quite |actually |even )?what (?:you|i was|was asked)\b|(?:doesn't|does not|didn't|did not|won't|hardly|don't|isn't|not) (?:\w+ )?(?:answer\w*|address\w*|help\w*) (?:your|the|what|you\b)(?: (?:question|asked|at all))?|nothing to do with (?:your|the|what|you)|no (?:answer|reply) to (?:your|the|what))", own=True),
    _cue("back-to", 2, rf"\b(?:(?:get|go|getting|going|come|coming|return|returning|let's get|turn|steer|circle|circling|jump|move|swing|brings? (?:me|us)|moving|now|anyway|and|so|but|right|okay|ok|^)[ ,]*(?:right )?(?:back )?(?:back|return|returning|on|now) ?(?:on )?to {_QUESTION}|(?:return|returning|coming|going) to {_QUESTION})", own=True),
    _cue("answer-question", 2, rf"\b{_WILL} {_W_ADV}(?:answer|address|respond to|focus on|stick to|tackle|return to|get to|turn to|attend to|deal with|handle|re-?read|concentrate on|go back to|get back to|come back to|get back on|go back on) {_QUESTION}", own=True),
    _cue("to-actually", 2, r"(?:now,? )?to (?:actually|properly|really|finally) (?:answer|address) (?:your|the|what)", own=True, anchored=True),
    _cue("back-to-topic", 1, r"(?:let me (?:get|go|come) )?back to (?:the )?\w+(?: \w+)?(?= *[.,:!;—–]|$)|\b(?:let me|i should|i'?ll) (?:get|go|come|turn) back to \w+", anchored=True),
    _cue("refocus-bare", 2, r"(?:focus|refocus|concentrate|stay on (?:topic|track)|on topic)(?= *[.!:]| *$)", own=True, anchored=True),
    _cue("what-nonsense", 2, r"what (?:complete |utter |total |a load of |a pile of )?(?:nonsense|rubbish|gibberish|drivel|(?:a )?mess|a muddle|a digression|a tangent)\b", anchored=True),
    _cue("as-for-question", 1, r"(?:as (?:for|to) your (?:actual |real )?question|(?:now|right|ok|okay),? (?:for |to )?your (?:actual |real )?question|the (?:actual|real|correct|right|true) (?:answer|question|figure|value|number)\b)", own=True, anchored=True),
)
"""Every cue. A piece's weight is the largest of those that match it, plus half of the next."""

STRONG_INTERRUPTION = re.compile(
    rf"(?:(?:oh |but |no |now |hey |just |please )?(?:wait|hold on|hang on|hang about|hold up|hold it|hold your horses|hold the phone|hang fire|whoa)(?:,? (?:a|one|just a|half a))?(?: (?:second|sec|minute|moment|min|tick|mo|bit|now|there|up))?(?!,? (?:and|or|then|before|until|till|for|to)\b)"
    rf"(?:{_STOP}|(?= (?:that|thats|this|these|those|no|nope|what|why|where|i|i'?m|i'?ve|you|actually|sorry|none|there|it'?s|did|am|not|my|scratch|wrong|oops|why)\b))|"
    rf"(?:i |i'?m |i am |so |very |oh |ah |terribly |really |lol |omg )*(?:sorry|apologies|my apologies|pardon(?: me)?|excuse me|forgive me|beg (?:your )?pardon)(?:,? (?:about|for) (?:that|this)(?: \w+)?(?= *[.,!;:—–-]|$)|(?! (?:for|about|to|if|that you|you|not|your|state|sight|excuse|as|when|and|or)\b)(?!-)(?!,? (?:not sorry|but (?:i|we) (?:can|do|am|have)|(?:i|we) (?:can'?t|cannot|do not|don'?t|am unable|'m not able|couldn)))|(?= for (?:the|any|my|that) (?:confusion|mix-?up|mistake|error|detour|digression|tangent|rambl\w+|mess|slip|muddle|nonsense|wrong|false)))|"
    rf"i (?:do |must |sincerely )?apologi[sz]e(?! (?:for the delay|for any|to (?:your|the)))|"
    rf"(?:no|nope|nah|nay|not)(?:{_STOP}|(?= (?:wait|that|thats|this|i|it'?s|sorry|scratch|scrap|strike|forget|no|these|those)\b))(?! (?:idea|need|one|problem|matter))|"
    rf"(?:stop|halt|pause|cut|timeout|time out|enough|freeze|abort)(?= *[.!,;:—–])|"
    rf"(?:oops(?:ie|y)?|whoops(?:ie|y)?|oop|woops|d'?oh|u+gh+|a+r+gh+|gah|yikes|eek|darn(?: it)?|dang(?: it)?|damn(?: it)?|dammit|drat|shoot|crap|shit|ahem|uh[- ]oh|wtf|rats|good grief|(?:my )?goodness(?: me| gracious)?|gosh|good (?:heavens|lord|gracious)|heavens|oh dear|dear me|oh no|oh boy|oh my|blimey|crikey|bother|huh|eh|lol|lmao|omg|hmm+|hm|haha|facepalm|yeesh|jeez|geez|sheesh|oh|ack|welp|erm?|umm*|uhh*|ah+|aha|argh|brain fart|eww?|phew|tsk|rats|nuts|blast)"
    rf"(?![\w-])(?! moments?))",
    _FLAGS,
)
"""An interruption of one's own text: worth 1 at the start of a piece, 0.5 for the milder ones."""

MILD_INTERRUPTION = re.compile(r"(?:oh|ah+|aha|phew|welp|lol|haha|gosh|enough|freeze|pause)$", _FLAGS)

FILLER = re.compile(
    r"(?:on (?:second thoughts?|reflection|checking|reading (?:that|this) (?:back|again))|come to think of it|i(?:'m| am) afraid(?: that)?|i (?:think|believe|guess|suspect|realise|realize|notice|see|fear|feel|just realized|just realised|just noticed)(?: now| that)*|i (?:don'?t|do not) think|it (?:seems|looks like|appears)(?: that)?|looks like|seems(?: like)?|let me (?:clarify|rephrase)(?: that)?|"
    r"i mean|as|wait a minute|ok|okay|okey|right|alright|all right|well|so|and|but|now|yet|actually|anyway|anyhow|hey|look|listen|see|bear with me|in (?:fact|truth|short)|truth be told|the truth is|with apologies|double-?checking(?: that)?|(?:reading|looking at|checking) (?:this|that|it)(?: back| again| over)?|honestly|please|"
    r"yes|yeah|yep|then|wow|still|frankly|instead|also|um|man|my|dear|let'?s see|to be clear|to be honest|wait|because|since|looking back|for|"
    r"yet again|clearly|obviously|once again|again)(?![\w'-])",
    _FLAGS,
)

CONDITIONAL = re.compile(
    r"(?:(?:and|but|so|or|then|also|even|[-*•]|\d+[.)]) ?)*(?:if|when|whenever|unless|should you|in case|whether|before|once|until|suppose|imagine|as long as|every time|sometimes|often|for (?:example|instance)|e\.g\.)\b",
    _FLAGS,
)
"""A piece that opens so speaks of cases, not of itself."""

HABIT = re.compile(
    r"\b(?:i|we|you|they|he|she|people|one) (?:may|might|can|could|would|sometimes|often|always|usually|rarely|never|tend to|used to)\b|\b(?:whenever|every time|sometimes|as a (?:beginner|child|kid|student)|"
    r"last (?:week|year|month|summer|night|time)|years? ago|yesterday|once,)\b",
    _FLAGS,
)

BELIEF = re.compile(
    r"\b(?:(?:some|many|most|few|certain|other|several|lots of|plenty of|early|ancient|older|bad|popular) ?(?:\w+ ){0,2}?(?:people|sources|guides|books|cooks|experts|writers|sites|blogs|films?|theories|historians|scientists|say|think|believe|claim|insist|argue|assume|maintain|swear|would)|"
    r"people (?:\w+ ){0,2}?(?:say|think|believe|assume|claim|often|tend|used|still)|they (?:say|said|think|thought|believed|claimed)|legend|myth|mythical|folklore|superstition|rumou?rs?|misconception|fallacy|old wives|urban|conspiracy|"
    r"(?:commonly|widely|often|sometimes|long|once|generally|popularly|frequently|usually) (?:\w+ )?(?:said|thought|believed|held|assumed|taught|claimed|repeated|supposed|told)|"
    r"(?:believed|claimed|argued|thought|supposed|held|taught|insisted|asserted|proposed|suggested|assumed|concluded|alleged|guessed|announced|reported|wrote|told|asserts?|claims|argues|insists)\b|"
    r"you (?:may|might|could|will|'ll|can)(?: \w+)? (?:think|have|hear|read|be tempted|assume|expect|see|suppose|believe|say|guess|find)|you'd think|one (?:might|may|could|would)|it is (?:tempting|said|believed|thought)|it's tempting|intuition|intuitively|tempting|"
    r"common (?:\w+ )?(?:belief|mistake|error|claim|idea|advice|view|misconception|wisdom|assumption|answer|guess|question|problem|response|objection)|"
    r"suppose|assume|assuming|imagine|hypothes\w+|contradiction|idea that|notion that|belief|believing|the claim|the view|critics|opponents|supporters|skeptics|sceptics|according to|so-called|allegedly|supposedly|textbooks?|students?|beginners|learners|children|he|she|the (?:man|woman|boy|girl|teacher|doctor|judge|witness|suspect)|if|whether|"
    r"we (?:say|write|guess|try|take) \w+|for example|for instance|true or false)\b",
    _FLAGS,
)
"""What precedes a judgement of something other than the writer's own text."""

OWN_VOICE = re.compile(r"\b(?:i|i'?m|i'?ve|me|my|myself|let me)\b|^(?:well |so |ok |okay |but |and )?(?:that|this|those|all (?:of )?(?:that|this)|none|nothing|the above|everything)\b", _FLAGS)
FAULT = re.compile(
    r"\b(?:wrong|not|no|nothing|never|none|mistak\w+|errors?|off|nonsense|irrelevant|astray|lost|bad|sorry|fail\w*|useless|forget|ignore|drop|"
    r"stop|apolog\w+|far|strange|odd|weird|embarrass\w+|mess|again|back|re-?start\w*|start|begin|anew|afresh|redo|fix|correct\w*|properly|proper|"
    r"instead|rewrite|return|fresh|scratch|better|replace|revise|undo)\b|n't\b",
    _FLAGS,
)
ABOUT_ANSWER = re.compile(
    r"\b(?:questions?|answer\w*|topic|subject|task|track|thread|paragraph|sentence|reply|response|draft|tangent|digress\w*|"
    r"(?:you|was) (?:\w+ )?(?:asked|wanted|meant|requested)|explaining|explanation|talking|rambl\w*|said|wrote|written|describing|telling|"
    r"writing|attempt|version|lines?|words|text|thought|mind|start over|tracks?)\b",
    _FLAGS,
)
"""Words of one's own voice, of fault or return, and of the answer itself: together weak evidence, 1.5."""

HARMLESS_THAT = re.compile(
    r"(?:that|this|those|these|it)(?:'s| is| was| are| were|s) (?:it\b|all\b|enough|fine|ok|okay|good|great|nice|right|correct|true|why|how|because|when|where|what|normal|the (?:limit|point|end|key|trick|secret|best|most|case|way|reason|idea|sign|signal|part where|one|time)|a (?:good|great|fair|sign|big|tough|hard|lovely|shame|common|myth|lot|lovely|matter)|an (?:excellent|interesting|important)|not (?:something|possible|allowed|a problem|all|bad|to say|enough|necessary)|perfectly|very|quite|so|too|really|something|easy|important|terrible news|awful news|up to|only|tough|hard|sad|understandable|interesting|funny|delicious|frustrating|to|done|ready|half)",
    _FLAGS,
)
SHORT_THAT = re.compile(r"(?:that|this|those|these|it)(?:'s| is| was| are| were|s) (?:not |actually |all |about |for |from )*\w+", _FLAGS)
