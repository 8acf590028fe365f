"""Cues that announce a new start or label one: "let me begin again", "second attempt:", "here is the real answer"."""

from __future__ import annotations

from countersteer.judging.cue import Cue, cue
from countersteer.judging.wording import AGAIN, START, STOP, W_ADV, WILL

RESTART: tuple[Cue, ...] = (
    # announcing a new start
    cue(
        "new-start",
        2,
        rf"\b{WILL} {W_ADV}(?:(?:stop|go back|back up|pause|rewind|apologi[sz]e|return)(?: here|"
        rf" there)?(?: and|,) (?:\w+ly )?)?(?:{START}(?: (?:this|that|it|all|the whole thing|"
        rf"my answer))? ?(?:all )?{AGAIN}|re-?start\b|redo\b|re-?focus\b|re-?group\b|rewind\b|"
        rf"back ?track\b|back up\b(?! (?:your|the|to|with|any|all))|start (?:this|that) (?:\w+ )?over|"
        rf"re-?set\b{STOP}|redirect myself|reorient|steer (?:back|this)|"
        r"(?:correct|fix|redo|rewrite|retract|withdraw|revise|re-?write|undo|erase|delete|discard|"
        r"scrap|scratch|strike|forget|ignore|disregard|walk back|drop|unsay|amend|rectify|reverse|"
        r"replace|clean up|walk back|throw out|throw away|toss) (?:all |all of )?(?:that|this|it|"
        r"myself|my|what i|the above|everything|those)\b|"
        r"(?:try|retry|attempt) (?:answering|to answer|your question|once more|again(?! (?:with|in|"
        r"for|on|the))|a different (?:answer|approach to your)|to (?:actually|properly|really|"
        r"do better)|(?:that|this|it)(?: one)? (?:again|once more|properly|differently)(?! (?:with|in|"
        r"for|on|the))|(?:that|this)(?= *[.!:—–]))|walk (?:that|this|it|all that) back|"
        r"redirect (?:this|myself|my|us)|do better|stay on (?:topic|track)|"
        r"(?:pull|bring|steer|drag|get|collect) (?:myself|us|things|this)(?: back| together)?|"
        r"(?:regroup|recover)\b|throw (?:that|this|it|all) (?:out|away)|"
        r"(?:actually |properly |really |finally )+(?:answer|address|respond|explain|do|get to|tackle|"
        r"cover|describe)\b|"
        r"(?:have|take|make|give (?:it|this|that|you)) (?:another|a second|a fresh|a new|one more|a better) \w+|"
        r"give you (?:the|a) (?:\w+ )?(?:proper|real|right|correct|actual|better)|"
        r"(?:stop|stopping) (?:there|here|right there|myself|this))",
        own=True,
    ),
    cue(
        "properly",
        2,
        rf"\b{WILL} {W_ADV}(?:re-?)?(?:state|phrase|explain|write|do|answer|tell|give|describe|start|"
        rf"say|calculate|compute|list|put|tackle|try|work)\b[^.!?:]{{0,40}}?\b(?:correctly|properly|"
        rf"afresh|anew|this time|right this time|the right way|from scratch|"
        rf"without the \w+)(?= *[.,:;!—–]|$)",
        own=True,
    ),
    cue(
        "starting-again",
        2,
        rf"(?:re-?starting(?: my| the| this)?(?: answer| response)?|starting|beginning|trying|redoing|"
        rf"re-?doing|retrying|rewriting|recalculating|re-?writing|rewinding|resetting|taking (?:it|"
        rf"that|this)|answering|deleting|scrapping|discarding|backtracking|refocusing|"
        rf"correcting)(?: (?:this|that|it|all of that|myself|the answer))?(?: (?:and|"
        rf"then) \w+ing (?:it|this|that)?)? ?(?:{AGAIN}|back)?{STOP}",
        own=True,
        anchored=True,
    ),
    cue(
        "gerund-again",
        2,
        rf"\b(?:starting|beginning|trying|writing it|doing (?:it|that|this)|answering|taking (?:it|"
        rf"this|that)) (?:this |that |it |all )?{AGAIN}\b",
        own=True,
    ),
    cue(
        "imperative-again",
        1,
        r"(?:start|begin|try|once|one more time|from|back|here goes|here we go) ?(?:over|more|again|"
        r"afresh|anew|fresh|once more|the top|the beginning|the start|scratch|to the beginning|"
        r"to the start)?(?:,? then)?(?= *[:—–-])",
        own=True,
        anchored=True,
    ),
    cue(
        "here-is-real",
        2,
        r"\bhere(?:'?s| is| are| comes| goes)[^.!?:]{0,25}?\b(?:(?:actual|real|correct|right|proper|"
        r"true|better|revised|new|relevant|on-topic|second) (?:\w+ )?(?:answer|version|reply|response|"
        r"one|attempt|explanation|try)|actually |really |what you (?:actually |really )?(?:asked|"
        r"wanted|needed)|(?:an?|the|my) (?:answer to (?:your|the)|revised|working version))",
        own=True,
    ),
    cue(
        "here-is-right",
        1,
        r"\bhere(?:'?s| is| are)[^.!?:]{0,25}?\b(?:actual|real|correct|corrected|fixed|right|proper|"
        r"true|better)\b",
        own=True,
    ),
    cue(
        "better-one",
        2,
        r"(?:a |the |my )?(?:better|correct(?:ed)?|proper|real|right|actual|revised|second|new|fixed|"
        r"true|improved|fresh|final|another|third|next)(?: \w+)? (?:one|answer|version|attempt|try|go|"
        r"start|draft|take|shot|reply|response|explanation)s?(?: from scratch)?(?=,? *(?:[:—–]|"
        r"coming up))",
        own=True,
        anchored=True,
    ),
    cue(
        "correct-thing",
        1.5,
        r"(?:the |my )?(?:correct(?:ed)?|proper|real|right|actual|revised) (?:steps?|list|recipe|"
        r"instructions|code|function|poem|calculation|solution|result|figure|number|"
        r"order)s?(?=,? *[:—–])",
        own=True,
        anchored=True,
    ),
    cue(
        "label",
        2,
        r"(?:correction|erratum|correcting myself|self correction|edit|mistake|error|oops|retraction|"
        r"self-correction|corrected|revised|revision|re-?do|do-?over|mulligan|take (?:two|2|three|3)|"
        r"(?:attempt|try|round|version) (?:two|three|2|3|number two|no\.? ?2)|"
        r"(?:second|2nd|third|3rd|new|another|final|last|next|one more|fresh) (?:attempt|try|go|take|"
        r"start|shot|stab|round)|fresh start|clean slate|blank slate|once (?:more|again)(?:,? (?:from|"
        r"then)[^.!?:]{0,25})?|again,? from the (?:top|start|beginning)|(?:and |now )?back (?:on|"
        r"to) (?:track|topic|task|the question|your question|the task|the topic|the subject|"
        r"square one|the beginning|the start)|"
        r"(?:re-?starting|starting over|rewind|back ?space|re-?boot|control[- ]z|ctrl[- ]z|scratch|"
        r"backtrack|do over))(?: at hand| itself| you asked)?(?=[*_]* *(?:[:.!;—–,]| -))",
        anchored=True,
    ),
    cue("reset", 1, r"(?:reset|restart|re-?try|undo|delete)(?= *[.!])", anchored=True),
    cue(
        "start-label",
        2,
        r"(?:(?:start(?:ing)?|begin(?:ning)?|try(?:ing)?) (?:over|again|afresh|anew|fresh|once more)|"
        r"from the (?:top|beginning|start)|re-?try|take it from the top|"
        r"once more from the \w+)(?:,? (?:then|now|so))?(?=[*_]* *:)",
        own=True,
        anchored=True,
    ),
    cue(
        "start-bare",
        1,
        r"(?:start(?:ing)?|begin(?:ning)?) (?:over|again|afresh|anew|fresh)(?= *[.!,—–-]| *$)",
        own=True,
        anchored=True,
    ),
    cue(
        "label-comma",
        1,
        r"(?:so,? )?(?:once again|once more|again|properly this time|this time)(?= *[:,])",
        anchored=True,
    ),
    cue(
        "from-top",
        1,
        r"\b(?:from (?:the (?:top|very beginning|beginning|start)|scratch)(?:,? then| again|"
        r" once more)?|properly this time|for real this time|on topic this time)(?= *[:.,;!—–-]|$)",
    ),
)
