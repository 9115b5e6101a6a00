"""Measure how many planted false claims the caption checker catches, and how many true sentences it removes.

`python -m benchmarks.grounding [--each 40] [--seed 1009]`

The facts of invented clips are drawn from a seed. For each clip a true caption is written, either by `compose` or with
free wordings that exist only in this file. Then one false claim is planted in it. The claim is caught when the checker
removes the sentence that holds it. A true sentence of an unchanged caption that is removed is a false alarm.

The false claims do not come from the checker's word lists: `held_out` fails when a planted emotion, guess, intent or
judgement is in `FORBIDDEN`, or when the wording of an absent sound is in the vocabulary of sounds. The free wordings
with an odd index were not used while the checker was written ("held out"); their false alarms are reported separately.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from captioning.grounding.checker import ground_text
from captioning.look.picture_statistics import COLOURS
from captioning.write.compose import MEDIUM, Facts, compose, nameable_sounds
from captioning.write.vocabulary import FORBIDDEN, LANGUAGES, names, phrase, spans
from data_prep.clip import Tag
from data_prep.synthetic.sentences import sentence

_LABELS = names(
    "Bark|Meow|Piano|Church bell|Siren|Rain|Applause|Laughter|Hammer|Door|Car|Train|Baby cry, infant cry|Telephone|"
    "Violin, fiddle|Thunder|Footsteps|Helicopter|Chirp, tweet|Crackle|Glass|Whistle|Keys jangling|Typing|Sneeze|"
    "Motorcycle|Cheering|Moo|Waves, surf|Snoring"
)
_FOREIGN = {
    "de": "Das Haus steht am Rand von einem alten Wald und niemand wohnt dort",
    "fr": "Le petit train passe devant la maison toutes les heures du matin",
    "es": "El perro duerme en la puerta de la casa todas las tardes",
    "sv": "Båten ligger kvar vid bryggan tills vinden vänder mot norr",
}
_COUNTS = ("", "one", "two", "three", "four")

# Wordings of absent sounds. None is a phrase of the vocabulary (`held_out` checks it).
_ABSENT = names(
    "a kettle whistling on a stove|tyres screeching|someone hiccuping|a ukulele solo|distant bagpipes|a donkey braying|"
    "an espresso machine|a zip being pulled|gulls overhead|a printer|bubble wrap|a modem|a wolf pack|popcorn popping|"
    "a squeegee on wet tiles|castanets|a dentist's instrument|a lawn sprinkler|surf on shingle|an accordion waltz"
)
_ABSENT_SAYS = (
    "The sound of {} is heard.",
    "{} can be heard.",
    "There is {} in the sound.",
    "In it one hears {}.",
    "{} is heard throughout.",
)
_EMOTIONS = names(
    "The voice is wistful.|A mournful piano plays.|Speech is heard, full of rage.|The sound is bleak.|"
    "A jubilant crowd is heard.|The picture is cosy.|The speaker sounds irritated.|The camera pans with longing.|"
    "The mournful sound is heard throughout.|It is heartwarming.|The sound of a forlorn bell is heard.|"
    "A grumpy voice speaks.|The picture is haunting.|The speech is delivered with glee."
)
_GUESSES = names(
    "It must be evening.|The picture was taken at a wedding, one assumes.|The voice belongs to somebody famous.|"
    "No doubt it was recorded indoors.|It looks as if rain will come.|The sound would be that of a factory.|"
    "One imagines a crowd outside.|It is arguably a rehearsal.|As far as one can tell the camera is in a car.|"
    "The picture is, in all probability, old.|A stranger, it would appear, speaks.|It has to be a school."
)
_JUDGEMENTS = names(
    "The picture is exquisite.|The sound is of poor quality.|It is well composed.|The camera work is clumsy.|"
    "A masterful piano plays.|The speech is convincing.|The picture is tasteful.|The sound is delightful.|"
    "The speaker does it to impress.|The speaker aims to sell something.|The camera pans so that the viewer pays heed.|"
    "The voice means to warn of danger."
)
_OTHER_COLOURS = ("crimson", "teal", "maroon", "turquoise", "golden", "magenta", "ochre", "indigo")


def held_out() -> None:
    """Check that no planted wording is in the checker's word lists.

    Raises:
        ValueError: one is.
    """
    planted = " ".join((*_EMOTIONS, *_GUESSES, *_JUDGEMENTS)).lower()
    if both := FORBIDDEN & set(re.findall(r"[a-z]+", planted)):
        raise ValueError(f"not held out from FORBIDDEN: {', '.join(sorted(both))}")
    phrases = {phrase(label) for label in _LABELS}
    if both := {name for name in _ABSENT if name in phrases}:
        raise ValueError(f"not held out from the phrases of sounds: {', '.join(sorted(both))}")
    if both := set(COLOURS) & set(_OTHER_COLOURS):
        raise ValueError(f"not held out from the names of colours: {', '.join(sorted(both))}")


def make_facts(rng: np.random.Generator) -> Facts:
    """Draw the facts of a clip of 12 s: two or three sounds at different times, one to three speakers, a picture."""
    tags: list[Tag] = []
    while len(nameable_sounds(tuple(tags))) < 2:  # a caption names only one of two sounds that taggers confuse
        labels = [str(label) for label in rng.choice(_LABELS, int(rng.integers(2, 4)), replace=False)]
        starts = np.sort(rng.permutation(9)[: len(labels)] + rng.uniform(0, 0.4))
        tags = [
            Tag(label, round(float(at), 2), round(float(at + rng.uniform(1, 2.4)), 2), 0.9)
            for label, at in zip(labels, starts, strict=True)
        ]
    if rng.random() < 0.4:
        tags.append(Tag("Music", 0.0, 12.0, 0.9))
    shown = [str(name) for name in rng.choice(COLOURS, int(rng.integers(1, 4)), replace=False)]
    shares = {1: (0.95,), 2: (0.6, 0.3), 3: (0.45, 0.25, 0.15)}[len(shown)]
    picture = {
        "colours": dict(zip(shown, shares, strict=True)),
        "regions": {"upper": shown[0], "lower": shown[-1]},
        "black_and_white": False,
        "brightness": float(rng.choice([0.1, 0.5, 0.9])),
        "camera": str(rng.choice(["static", "pans left", "pans right", "tilts up", "tilts down"])),
        **{"movement": 0.1, "where": "", "path": "", "cuts": [] if rng.random() < 0.7 else [4.0]},
    }
    level = float(rng.choice([-50.0, -20.0, -8.0]))
    sound = {"seconds": 12.0, "level_db": level, "sounding": 1.0, "course_db": 0.0, "side_db": 0.0, "travel": ""}
    return Facts(12.0, picture, _spoken(rng), sound, tuple(tags))


def _spoken(rng: np.random.Generator) -> dict:
    language = "en" if rng.random() < 0.7 else str(rng.choice(list(_FOREIGN)))
    count = int(rng.integers(1, 4))
    said = [sentence(rng) for _ in range(3)] if language == "en" else [_FOREIGN[language]] * 3
    words, at, talks = [], 0.4, defaultdict(list)
    for turn, text in enumerate(said):
        speaker = turn % count + 1
        start = at
        for word in text.split():
            words.append(
                {"word": word, "start": round(at, 2), "end": round(at + 0.25, 2), "confidence": 0.9, "speaker": speaker}
            )
            at += 0.3
        talks[speaker].append([round(start, 2), round(at - 0.05, 2)])
        at += float(rng.uniform(0.1, 0.4))
    speakers = [{"speaker": speaker, "spans": spoken} for speaker, spoken in sorted(talks.items())]
    text = " ".join(said)
    return {
        **{"language": language, "language_probability": 0.98, "text": text, "words": words, "speakers": speakers},
        **{"voiced": [[0.4, round(at, 2)]], "removed": {}},
    }


# Free wordings of true statements; {…} is filled from the facts. Those with an odd index are held out.
_PICTURE = (
    "The image is {how}{colours}.",
    "The frame shows {how}{colours}.",
    "The footage is {how}{colours}.",
    "On screen, the picture is {how}{colours}.",
)
_REGION = (
    "The upper half of the picture is {upper}.",
    "{Upper} fills the upper half of the frame.",
    "The top of the image shows {upper}.",
    "At the bottom, the picture is {lower}.",
    "There is {lower} in the bottom half.",
    "The lower third is {lower}.",
)
_CAMERA = {
    "static": (
        "The camera stays still.",
        "The shot is taken with a static camera.",
        "The camera remains fixed.",
        "The camera does not move.",
    ),
    "moves": (
        "The camera {verb}s to the {way}.",
        "A slow {verb} to the {way}.",
        "The camera is {verb}ning {way}.",
        "The camera {verb}s slowly towards the {way}.",
    ),
}
_SOUND = (
    "{Sound} can be heard from {start} to {end} seconds.",
    "Between {start} and {end} seconds there is {sound}.",
    "{Sound} is heard between {start} s and {end} s.",
    "From {start} to {end} seconds, {sound} is audible.",
    "At {start} seconds, {sound} starts.",
    "{Sound} begins at {start} seconds.",
    "One hears {sound} at {start} seconds.",
    "From the {start} second mark, {sound} sounds.",
)
_ORDER = (
    "First comes {first}, then {second}.",
    "{First} is heard before {second}.",
    "{Second} is heard after {first}.",
    "{First} is followed by {second}.",
    "After {first}, {second} is heard.",
    "{First} and then {second} can be heard.",
    "{Second} comes in once {first} has begun.",
    "Following {first}, there is {second}.",
)
_COUNT = (
    "{Count} {people} speak.",
    "{Count} {people} can be heard.",
    "There are {count} {people}.",
    "One hears {count} different {voices}.",
)
_SPEECH = (
    "Speaker {who} says in {language}: “{quote}”.",
    "In {language}, speaker {who} says “{quote}”.",
    "“{quote}” is said in {language}.",
    "Speaker {who} utters the words “{quote}”.",
    "A voice says “{quote}”.",
    "The words “{quote}” are spoken in {language}.",
)


def free_caption(facts: Facts, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Write a true caption as a list of (sentence, name of its wording, for example "order 4")."""
    out = []

    def say(kind: str, wordings: tuple[str, ...], **values: str) -> None:
        at = int(rng.integers(len(wordings)))
        said = wordings[at].format(**values, **{k.capitalize(): v[:1].upper() + v[1:] for k, v in values.items()})
        if not said.startswith("There are one"):
            out.append((said, f"{kind} {at}"))

    shown = list(facts.picture["colours"])
    how = {1: "", 2: "mainly ", 3: "predominantly "}[len(shown)]
    say("picture", _PICTURE, how=how, colours=_list(shown))
    say("region", _REGION, **{part: facts.picture["regions"][part] for part in ("upper", "lower")})
    verb, _, way = facts.picture["camera"].partition("s ")
    say("camera", _CAMERA["static" if facts.picture["camera"] == "static" else "moves"], verb=verb, way=way)
    count = len(facts.transcript["speakers"])
    people = ("people", "speakers", "voices")[int(rng.integers(3))]
    singular = {"people": "person", "speakers": "speaker", "voices": "voice"}[people] if count == 1 else people
    say("count", _COUNT, count=_COUNTS[count], people=singular, voices="voices" if count > 1 else "voice")
    who, quote = _quoted(facts, rng)
    say("speech", _SPEECH, who=str(who), quote=quote, language=LANGUAGES[facts.transcript["language"]])
    for name, ((start, end), *_) in _events(facts):
        say("sound", _SOUND, sound=name, start=f"{start:.1f}", end=f"{end:.1f}")
    (first, _), (second, _) = _events(facts)[:2]
    say("order", _ORDER, first=first, second=second)
    return out


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _events(facts: Facts) -> list[tuple[str, list[tuple[float, float]]]]:
    """The sounds that a caption may name with their time spans, ordered by start."""
    return sorted(
        ((name, spans(tags)) for name, tags in nameable_sounds(facts.tags).items()), key=lambda item: item[1][0]
    )


def _quoted(facts: Facts, rng: np.random.Generator) -> tuple[int, str]:
    """(speaker, the words of their first turn)."""
    words = facts.transcript["words"]
    who = words[int(rng.integers(len(words)))]["speaker"]
    first = next(i for i, word in enumerate(words) if word["speaker"] == who)
    said = [word["word"] for word in words[first:] if word["speaker"] == who]
    until = next((i for i, word in enumerate(words[first:]) if word["speaker"] != who), len(said))
    return who, " ".join(said[:until]).rstrip(".")


Caption = list[str]


def _plant_quote(facts: Facts, caption: Caption, rng: np.random.Generator) -> int | None:
    at = next((i for i, s in enumerate(caption) if "“" in s), None)
    if at is None:
        return None
    before, quote, after = re.split("[“”]", caption[at], maxsplit=2)
    words = quote.split()
    place = int(rng.integers(len(words)))
    how = int(rng.integers(4))
    if how == 0:
        words[place] = str(rng.choice(["never", "yellow", "Thursday", "gate", "nine", "she"]))
    elif how == 1:
        words.insert(place, str(rng.choice(["not", "hardly", "old", "also"])))
    elif how == 2 and len(words) > 2:
        del words[int(rng.integers(1, len(words) - 1))]
    else:
        words[place] = words[place][::-1].lower() + "o"
    changed = " ".join(words)
    caption[at] = f"{before}“{changed}”{after}"
    return at


def _plant_sound(facts: Facts, caption: Caption, rng: np.random.Generator) -> int:
    if rng.random() < 0.5:
        name = str(rng.choice(_ABSENT))
    else:
        there = {tag.label for tag in facts.tags}
        near = [label for label in _LABELS if label not in there]
        name = phrase(str(rng.choice(near)))
    said = str(rng.choice(_ABSENT_SAYS)).format(name)
    return _insert(caption, said[:1].upper() + said[1:], rng)


def _plant_speakers(facts: Facts, caption: Caption, rng: np.random.Generator) -> int:
    count = len(facts.transcript["speakers"])
    wrong = int(rng.choice([n for n in (1, 2, 3, 4) if n != count]))
    people = "voices speak" if wrong > 1 else "voice speaks"
    forms = [f"{_COUNTS[wrong].capitalize()} {people}.", f"There are {wrong} speakers.", f"Speaker {count + 1} talks."]
    if count == 1:
        forms.append("Several people are heard.")
    return _insert(caption, str(rng.choice(forms)), rng)


def _plant_language(facts: Facts, caption: Caption, rng: np.random.Generator) -> int:
    there = facts.transcript["language"]
    wrong = LANGUAGES[str(rng.choice([code for code in LANGUAGES if code != there]))]
    right = LANGUAGES[there]
    at = next((i for i, s in enumerate(caption) if f"in {right}" in s), None)
    if at is not None:
        caption[at] = caption[at].replace(f"in {right}", f"in {wrong}").replace(f"In {right}", f"In {wrong}")
        return at
    return _insert(caption, f"The {wrong}-speaking voice is heard.", rng)


def _plant_colour(facts: Facts, caption: Caption, rng: np.random.Generator) -> int | None:
    there = list(facts.picture["colours"])
    wrong = str(rng.choice([name for name in (*COLOURS, *_OTHER_COLOURS) if name not in there]))
    colours = [i for i, s in enumerate(caption) if "“" not in s and any(re.search(rf"\b{c}\b", s) for c in there)]
    if not colours:
        return None
    at = int(rng.choice(colours))
    right = next(c for c in there if re.search(rf"\b{c}\b", caption[at]))
    caption[at] = re.sub(rf"\b{right}\b", wrong, caption[at], count=1)
    return at


def _plant_order(facts: Facts, caption: Caption, rng: np.random.Generator) -> int | None:
    (first, _), (second, _) = _events(facts)[:2]
    said = str(rng.choice(_ORDER))
    swapped = {"first": second, "second": first}
    text = said.format(**swapped, **{k.capitalize(): v[:1].upper() + v[1:] for k, v in swapped.items()})
    return _insert(caption, text, rng)


def _plant_time(facts: Facts, caption: Caption, rng: np.random.Generator) -> int | None:
    timed = [i for i, s in enumerate(caption) if re.search(r"\d\.\d", re.sub("“.*?”", "", s))]
    if not timed:
        return None
    at = int(rng.choice(timed))
    moved = float(rng.choice([-1, 1])) * float(rng.uniform(2.6, 6))
    caption[at] = re.sub(r"\d+\.\d", lambda m: f"{abs(float(m.group()) + moved):.1f}", caption[at])
    return at


def _plant_camera(facts: Facts, caption: Caption, rng: np.random.Generator) -> int:
    ways = ["pans left", "pans right", "tilts up", "tilts down", "stays still", "zooms in", "shakes", "follows the car"]
    there = facts.picture["camera"]
    wrong = [way for way in ways if way != there and not (there == "static" and way == "stays still")]
    return _insert(caption, f"The camera {rng.choice(wrong)}.", rng)


def _one_of(wordings: list[str]) -> Callable[[Facts, Caption, np.random.Generator], int]:
    return lambda facts, caption, rng: _insert(caption, str(rng.choice(wordings)), rng)


def _insert(caption: Caption, said: str, rng: np.random.Generator) -> int:
    at = int(rng.integers(len(caption) + 1))
    caption.insert(at, said)
    return at


PLANTS: dict[str, Callable[[Facts, Caption, np.random.Generator], int | None]] = {
    "quote": _plant_quote,
    "sound": _plant_sound,
    "speakers": _plant_speakers,
    "language": _plant_language,
    "colour": _plant_colour,
    "order": _plant_order,
    "time": _plant_time,
    "camera": _plant_camera,
    "emotion": _one_of(_EMOTIONS),
    "guess": _one_of(_GUESSES),
    "judgement, intent": _one_of(_JUDGEMENTS),
}


def measure(each: int, seed: int) -> dict:
    """Count false claims planted and caught by kind, and true sentences and false alarms by wording.

    Args:
        each: captions per kind of false claim.
        seed: of the facts and the claims.
    """
    held_out()
    planted, caught, by_reason = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    true, alarms = Counter[str](), Counter[str]()
    captions, alarmed = Counter[str](), Counter[str]()
    missed, wrong = [], []
    for kind_index, (kind, plant) in enumerate(PLANTS.items()):
        for index in range(each):
            rng = np.random.default_rng([seed, kind_index, index])
            facts = make_facts(rng)
            wording_kind = "composed" if index % 2 else "free"
            if wording_kind == "composed":
                truth = [(s.text, "composed") for s in compose(facts, 4) if MEDIUM in s.variants]
            else:
                truth = free_caption(facts, rng)
            _, removed = ground_text(" ".join(text for text, _ in truth), facts)
            refused = {item.text: item.reasons for item in removed}
            captions[wording_kind] += 1
            alarmed[wording_kind] += bool(refused)
            for text, wording in truth:
                name = _group(wording)
                true[name] += 1
                if text in refused:
                    alarms[name] += 1
                    wrong.append((wording, text, refused[text]))
            caption = [text for text, _ in truth]
            at = plant(facts, caption, rng)
            if at is None:
                continue
            planted[kind] += 1
            _, removed = ground_text(" ".join(caption), facts)
            reasons = next((item.reasons for item in removed if item.text == caption[at]), None)
            if reasons is None:
                missed.append((kind, caption[at], replace(facts, picture={}, sound={})))
            else:
                caught[kind] += 1
                by_reason.update((kind, reason.split(":")[0]) for reason in reasons[:1])
    return {
        **{"planted": planted, "caught": caught, "true": true, "alarms": alarms, "by_reason": by_reason},
        **{"captions": captions, "alarmed": alarmed, "missed": missed, "wrong": wrong},
    }


def _group(wording: str) -> str:
    if wording == "composed":
        return wording
    return "free, held out" if int(wording.split()[1]) % 2 else "free, known"


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=40, help="captions per kind of false claim")
    parser.add_argument("--seed", type=int, default=1009)
    parser.add_argument("--show", default="missed", help="missed, alarms (of known wordings) or held-out")
    args = parser.parse_args()
    found = measure(args.each, args.seed)
    planted, caught = found["planted"], found["caught"]
    print(f"{planted.total()} captions with one false claim, seed {args.seed}: {caught.total()} caught", end=" ")
    print(f"({100 * caught.total() / planted.total():.1f} %)")
    for kind in PLANTS:
        reasons = {reason: n for (of, reason), n in found["by_reason"].items() if of == kind}
        print(f"  {kind:18} {caught[kind]:3} of {planted[kind]:3}   first reason: {reasons}")
    for name, count in sorted(found["true"].items()):
        print(f"true sentences, {name:15} {found['alarms'][name]:4} of {count:5} removed", end=" ")
        print(f"({100 * found['alarms'][name] / count:.1f} %)")
    for wording_kind, count in found["captions"].items():
        print(f"true captions, {wording_kind:9} {found['alarmed'][wording_kind]:4} of {count} with a false alarm")
    for wording, text, reasons in found["wrong"]:
        if args.show == ("held-out" if _group(wording) == "free, held out" else "alarms"):
            print(f"  {wording}: {text}  {reasons}")
    for kind, text, facts in found["missed"] if args.show == "missed" else ():
        print(f"  missed {kind}: {text}  {[(t.label, t.start_s, t.end_s) for t in facts.tags]}")


if __name__ == "__main__":
    main()
