"""The words that a caption may use: names of languages, phrases for AudioSet labels, and forbidden words.

The composer and the checker share these tables, so that the checker can trace every phrase that the composer writes
back to its label.
"""

from collections.abc import Iterable
from functools import cache

from data_prep.clip import Tag


def words(text: str) -> list[str]:
    """Split a text into words at white space."""
    return text.split()


def names(text: str) -> list[str]:
    """Split a text into names at "|"; a line break counts as a space."""
    return [name.strip() for name in text.replace("\n", " ").split("|") if name.strip()]


# Whisper's 100 languages (Radford et al. 2022, large-v3's Cantonese included).
LANGUAGES = dict(
    pair.split(":")
    for pair in words(
        """
        en:English zh:Chinese de:German es:Spanish ru:Russian ko:Korean fr:French ja:Japanese pt:Portuguese
        tr:Turkish pl:Polish ca:Catalan nl:Dutch ar:Arabic sv:Swedish it:Italian id:Indonesian hi:Hindi fi:Finnish
        vi:Vietnamese he:Hebrew uk:Ukrainian el:Greek ms:Malay cs:Czech ro:Romanian da:Danish hu:Hungarian ta:Tamil
        no:Norwegian th:Thai ur:Urdu hr:Croatian bg:Bulgarian lt:Lithuanian la:Latin mi:Maori ml:Malayalam cy:Welsh
        sk:Slovak te:Telugu fa:Persian lv:Latvian bn:Bengali sr:Serbian az:Azerbaijani sl:Slovenian kn:Kannada
        et:Estonian mk:Macedonian br:Breton eu:Basque is:Icelandic hy:Armenian ne:Nepali mn:Mongolian bs:Bosnian
        kk:Kazakh sq:Albanian sw:Swahili gl:Galician mr:Marathi pa:Punjabi si:Sinhala km:Khmer sn:Shona yo:Yoruba
        so:Somali af:Afrikaans oc:Occitan ka:Georgian be:Belarusian tg:Tajik sd:Sindhi gu:Gujarati am:Amharic
        yi:Yiddish lo:Lao uz:Uzbek fo:Faroese ht:Haitian ps:Pashto tk:Turkmen nn:Nynorsk mt:Maltese sa:Sanskrit
        lb:Luxembourgish my:Burmese bo:Tibetan tl:Tagalog mg:Malagasy as:Assamese tt:Tatar haw:Hawaiian ln:Lingala
        ha:Hausa ba:Bashkir jw:Javanese su:Sundanese yue:Cantonese
        """
    )
)

# Labels whose sound is speech. A caption reports speech from the transcript instead of from these tags.
SPEECH = frozenset(
    {
        "Speech",
        "Child speech, kid speaking",
        "Conversation",
        "Narration, monologue",
        "Speech synthesizer",
        "Babbling",
    }
)

# Labels that a caption leaves out: silence, properties of the recording, a mood, or a class that is too general.
UNMENTIONED = frozenset(
    names(
        """
        Silence|Sound effect|Effects unit|Field recording|Sidetone|Harmonic|Pulse|Outside, urban or manmade|
        Outside, rural or natural|Inside, small room|Inside, large room or hall|Inside, public space|Television|
        Radio|Environmental noise|Noise|Animal|Wild animals|Domestic animals, pets|
        Livestock, farm animals, working animals|Mechanisms|Tools|Hands|Happy music|Sad music|Tender music|
        Exciting music|Angry music|Scary music|Musical instrument|Single-lens reflex camera|Arrow|Sampler|
        Scratching (performance technique)|Tapping (guitar technique)|Background music|Theme music|
        Soundtrack music|Music of Bollywood|Wedding music|Christmas music|Independent music|Traditional music|
        Music for children|Video game music|Vocal music|Song
        """
    )
)

# Label → its narrower labels. If one of them is heard at the same time, a caption leaves the broader label out.
NARROWER: dict[str, frozenset[str]] = {
    "Dog": frozenset({"Bark", "Yip", "Howl", "Bow-wow", "Growling", "Whimper (dog)"}),
    "Cat": frozenset({"Purr", "Meow", "Caterwaul"}),
    "Bird": frozenset(
        {
            "Bird vocalization, bird call, bird song",
            "Chirp, tweet",
            "Squawk",
            "Pigeon, dove",
            "Coo",
            "Crow",
            "Caw",
            "Owl",
            "Hoot",
        }
    ),
    "Bird vocalization, bird call, bird song": frozenset({"Chirp, tweet", "Squawk", "Coo", "Caw", "Hoot"}),
    "Bark": frozenset({"Yip", "Bow-wow"}),
    "Water": frozenset({"Rain", "Stream", "Waterfall", "Ocean", "Waves, surf", "Gurgling", "Splash, splatter", "Pour"}),
    "Rain": frozenset({"Raindrop", "Rain on surface"}),
    "Liquid": frozenset({"Splash, splatter", "Slosh", "Drip", "Pour", "Gush", "Water", "Fill (with liquid)"}),
    "Wind": frozenset({"Wind noise (microphone)"}),
    "Vehicle": frozenset(
        {
            "Motor vehicle (road)",
            "Car",
            "Truck",
            "Bus",
            "Motorcycle",
            "Train",
            "Rail transport",
            "Aircraft",
            "Helicopter",
            "Boat, Water vehicle",
            "Car passing by",
            "Race car, auto racing",
            "Bicycle",
        }
    ),
    "Motor vehicle (road)": frozenset({"Car", "Truck", "Bus", "Motorcycle", "Car passing by"}),
    "Car": frozenset({"Car passing by", "Race car, auto racing"}),
    "Rail transport": frozenset({"Train", "Railroad car, train wagon", "Subway, metro, underground"}),
    "Train": frozenset({"Railroad car, train wagon", "Subway, metro, underground"}),
    "Clapping": frozenset({"Applause"}),
    "Crowd": frozenset({"Cheering", "Chatter", "Applause"}),
    "Wood": frozenset({"Chop", "Splinter", "Hammer", "Sawing"}),
    "Glass": frozenset({"Chink, clink", "Shatter"}),
    "Percussion": frozenset(
        {
            "Drum kit",
            "Drum",
            "Snare drum",
            "Bass drum",
            "Drum roll",
            "Cymbal",
            "Hi-hat",
            "Tabla",
            "Marimba, xylophone",
            "Glockenspiel",
            "Mallet percussion",
            "Wood block",
        }
    ),
    "Mallet percussion": frozenset({"Marimba, xylophone", "Glockenspiel", "Vibraphone"}),
    "Drum": frozenset({"Drum kit", "Snare drum", "Bass drum", "Drum roll", "Drum machine"}),
    "Plucked string instrument": frozenset(
        {"Guitar", "Acoustic guitar", "Electric guitar", "Banjo", "Sitar", "Mandolin", "Ukulele", "Harp", "Zither"}
    ),
    "Guitar": frozenset({"Acoustic guitar", "Electric guitar", "Bass guitar", "Steel guitar, slide guitar"}),
    "Keyboard (musical)": frozenset({"Piano", "Electric piano", "Organ", "Synthesizer", "Harpsichord"}),
    "Organ": frozenset({"Electronic organ", "Hammond organ"}),
    "Bowed string instrument": frozenset({"Violin, fiddle", "Cello", "Double bass", "String section"}),
    "Wind instrument, woodwind instrument": frozenset({"Flute", "Saxophone", "Clarinet"}),
    "Brass instrument": frozenset({"French horn", "Trumpet", "Trombone"}),
    "Knock": frozenset({"Tap"}),
    "Alarm": frozenset({"Siren", "Fire alarm", "Smoke detector, smoke alarm", "Alarm clock", "Car alarm"}),
    "Bell": frozenset({"Church bell", "Jingle bell", "Bicycle bell", "Telephone bell ringing"}),
    "Siren": frozenset({"Police car (siren)", "Ambulance (siren)", "Fire engine, fire truck (siren)"}),
}

# Struck instruments. Taggers give them low scores for any knock.
STRUCK = frozenset(
    names(
        """
        Percussion|Cowbell|Rimshot|Timpani|Tabla|Cymbal|Hi-hat|Snare drum|Bass drum|Drum|Drum kit|Drum roll|Steelpan|
        Gong|Tubular bells|Maraca|Tambourine|Rattle (instrument)|Drum machine
        """
    )
)

# Labels of something that is struck, and the class above them in AudioSet's ontology. No tagger outputs that class;
# `hear.onsets` makes tags of it.
KNOCKS = names(
    """
    Hammer|Chop|Wood|Chopping (food)|Tools|Knock|Tap|Thump, thud|Thunk|Bang|Basketball bounce|Bouncing|Wood block|
    Whack, thwack|Slap, smack|Clip-clop|Door|Slam
    """
)
IMPACT = "Generic impact sounds"

# Groups of labels that taggers confuse. Of the labels of a group that are heard at once, a caption mentions only the
# strongest.
CONFUSABLE = tuple(
    frozenset(names(group))
    for group in (
        "Waterfall|Stream|Ocean|Waves, surf|Rain|Rain on surface|Raindrop|Water|Gurgling|White noise|Pink noise|Steam|"
        "Static|Hiss|Frying (food)|Wind|Gush|Spray|Pour|Liquid",
        "Telephone|Telephone bell ringing|Ringtone|Dial tone|Busy signal|Telephone dialing, DTMF|Alarm|Buzzer|"
        "Beep, bleep|Smoke detector, smoke alarm|Fire alarm|Car alarm|Alarm clock|Reversing beeps|Sine wave|"
        "Chirp tone|Tuning fork|Chirp, tweet|Bird vocalization, bird call, bird song|Ping|Ding",
        "Insect|Bee, wasp, etc.|Fly, housefly|Mosquito|Buzz|Cricket",
        "Bark|Bow-wow|Yip|Howl|Growling|Whimper (dog)|Canidae, dogs, wolves",
        "Bird|Chirp, tweet|Squawk|Pigeon, dove|Coo|Crow|Caw|Owl|Hoot|Whistling|Bird vocalization, bird call, bird song",
        "Harp|Zither|Pizzicato|Guitar|Acoustic guitar|Plucked string instrument|Sitar|Mandolin|Banjo|Ukulele|Strum|"
        "Steel guitar, slide guitar|Electric guitar|Bass guitar|Harpsichord|Marimba, xylophone",
        "Marimba, xylophone|Glockenspiel|Vibraphone|Mallet percussion|Steelpan|Tubular bells|Chime|Bell|Church bell|"
        "Singing bowl|Wind chime|Tuning fork|Gong|Cowbell|Ding",
        "Piano|Electric piano|Keyboard (musical)|Synthesizer|Organ|Electronic organ|Hammond organ",
        "Drum kit|Drum|Snare drum|Bass drum|Drum roll|Drum machine|Cymbal|Hi-hat|Rimshot|Timpani|Percussion|Tabla",
        "Hammer|Chop|Wood|Chopping (food)|Tools|Sawing|Knock|Tap|Thump, thud|Thunk|Bang|Skateboard|Cap gun|"
        "Gunshot, gunfire|Machine gun|Basketball bounce|Bouncing|Wood block|Door|Slam|Clip-clop|Walk, footsteps",
        "Vehicle|Car|Truck|Bus|Motor vehicle (road)|Boat, Water vehicle|Motorboat, speedboat|Ship|Aircraft|Helicopter|"
        "Train|Rail transport|Engine|Medium engine (mid frequency)|Heavy engine (low frequency)|Motorcycle|"
        "Accelerating, revving, vroom|Idling|Fixed-wing aircraft, airplane|Aircraft engine|Jet engine",
        "Mechanical fan|Air conditioning|White noise|Pink noise|Hum|Mains hum|Vacuum cleaner|Hair dryer|Static",
        "Applause|Clapping|Crowd|Cheering|Chatter|Rain",
    )
)

# Phrases of labels for which the rule of `phrase` would be wrong.
_PHRASES = {
    IMPACT: "impacts",
    # Taggers report these small lutes for any plucked string.
    "Ukulele": "a plucked string instrument",
    "Mandolin": "a plucked string instrument",
    "Banjo": "a plucked string instrument",
    "Bark": "a dog barking",
    "Bow-wow": "a dog barking",
    "Yip": "a dog yipping",
    "Howl": "howling",
    "Whimper (dog)": "a dog whimpering",
    "Whimper": "whimpering",
    "Meow": "a cat meowing",
    "Purr": "a cat purring",
    "Moo": "a cow mooing",
    "Chirp, tweet": "a bird chirping",
    "Bird vocalization, bird call, bird song": "a bird calling",
    "Crowing, cock-a-doodle-doo": "a rooster crowing",
    "Hoot": "an owl hooting",
    "Roar": "roaring",
    "Shout": "shouting",
    "Bellow": "bellowing",
    "Whoop": "whooping",
    "Yell": "yelling",
    "Crying, sobbing": "crying",
    "Baby cry, infant cry": "a baby crying",
    "Chuckle, chortle": "chuckling",
    "Snicker": "snickering",
    "Giggle": "giggling",
    "Wail, moan": "wailing",
    "Run": "running footsteps",
    "Walk, footsteps": "footsteps",
    "Shuffle": "shuffling",
    "Chewing, mastication": "chewing",
    "Hubbub, speech noise, speech babble": "a hubbub of voices",
    "Chatter": "chatter",
    "Crowd": "a crowd",
    "Heart sounds, heartbeat": "a heartbeat",
    "Buzz": "buzzing",
    "Rattle": "rattling",
    "Patter": "pattering",
    "Croak": "a frog croaking",
    "Hiss": "hissing",
    "Wind": "wind",
    "Wind noise (microphone)": "wind on the microphone",
    "Thunder": "thunder",
    "Water": "water",
    "Rain": "rain",
    "Rain on surface": "rain on a surface",
    "Raindrop": "raindrops",
    "Ocean": "the ocean",
    "Waves, surf": "waves",
    "Steam": "steam",
    "Fire": "fire",
    "Crackle": "crackling",
    "Toot": "a vehicle tooting",
    "Vehicle horn, car horn, honking": "a vehicle horn",
    "Power windows, electric windows": "electric windows",
    "Tire squeal": "squealing tires",
    "Motor vehicle (road)": "a motor vehicle",
    "Race car, auto racing": "a race car",
    "Boat, Water vehicle": "a boat",
    "Traffic noise, roadway noise": "traffic",
    "Rail transport": "rail transport",
    "Train wheels squealing": "squealing train wheels",
    "Light engine (high frequency)": "a light engine",
    "Medium engine (mid frequency)": "a medium engine",
    "Heavy engine (low frequency)": "a heavy engine",
    "Engine starting": "an engine starting",
    "Accelerating, revving, vroom": "an engine revving",
    "Slam": "slamming",
    "Knock": "knocking",
    "Tap": "tapping",
    "Squeak": "squeaking",
    "Cupboard open or close": "a cupboard",
    "Drawer open or close": "a drawer",
    "Dishes, pots, and pans": "dishes",
    "Cutlery, silverware": "cutlery",
    "Water tap, faucet": "a water tap",
    "Scissors": "scissors",
    "Telephone dialing, DTMF": "telephone dialing",
    "Tick": "ticking",
    "Tick-tock": "ticking",
    "Hammer": "hammering",
    "Chop": "chopping",
    "Splinter": "splintering",
    "Crack": "cracking",
    "Wood": "wood",
    "Glass": "glass",
    "Liquid": "liquid",
    "Chink, clink": "clinking",
    "Shatter": "shattering",
    "Splash, splatter": "splashing",
    "Slosh": "sloshing",
    "Squish": "squishing",
    "Drip": "dripping",
    "Pour": "pouring",
    "Trickle, dribble": "trickling",
    "Gush": "gushing",
    "Fill (with liquid)": "filling with liquid",
    "Spray": "spraying",
    "Stir": "stirring",
    "Burst, pop": "a burst",
    "Whoosh, swoosh, swish": "a whoosh",
    "Thump, thud": "a thump",
    "Basketball bounce": "a bouncing ball",
    "Slap, smack": "a slap",
    "Whack, thwack": "a whack",
    "Smash, crash": "a crash",
    "Flap": "flapping",
    "Scratch": "scratching",
    "Scrape": "scraping",
    "Rub": "rubbing",
    "Roll": "rolling",
    "Crumpling, crinkling": "crumpling",
    "Beep, bleep": "beeping",
    "Clang": "clanging",
    "Squeal": "squealing",
    "Creak": "creaking",
    "Rustle": "rustling",
    "Whir": "whirring",
    "Clatter": "clattering",
    "Sizzle": "sizzling",
    "Rumble": "rumbling",
    "Jingle, tinkle": "jingling",
    "Hum": "humming",
    "Mains hum": "mains hum",
    "Crunch": "crunching",
    "Chirp tone": "a chirp tone",
    "Reverberation": "reverberation",
    "Static": "static",
    "Distortion": "distortion",
    "Cacophony": "a cacophony",
    "White noise": "white noise",
    "Pink noise": "pink noise",
    "Applause": "applause",
    "Laughter": "laughter",
    "Baby laughter": "a baby laughing",
    "Belly laugh": "laughing",
    "Children playing": "children playing",
    "Cattle, bovinae": "cattle",
    "Percussion": "percussion",
    "Drum": "drums",
    "Orchestra": "an orchestra",
    "Keyboard (musical)": "a keyboard",
    "Rattle (instrument)": "a rattle",
    "Change ringing (campanology)": "bell ringing",
    "Choir": "a choir",
    "Chant": "chanting",
    "Child singing": "singing",
    "Synthetic singing": "singing",
    "Strum": "strumming",
    "Opera": "opera",
    "A capella": "singing",
    "Snare drum": "a snare drum",
    "Drum and bass": "drum and bass music",
    "Ship": "a ship",
    "Gears": "gears",
    "Pulleys": "pulleys",
    "Bus": "a bus",
    "Toothbrush": "a toothbrush",
    "Brass instrument": "a brass instrument",
    "Bass guitar": "a bass guitar",
    "Double bass": "a double bass",
    "Whistle": "a whistle",
    "Squawk": "squawking",
}

_GENRES = names(
    """
        Pop music|Hip hop music|Rock music|Heavy metal|Punk rock|Grunge|Progressive rock|Rock and roll|
        Psychedelic rock|Rhythm and blues|Soul music|Reggae|Country|Swing music|Bluegrass|Funk|Folk music|
        Middle Eastern music|Jazz|Disco|Classical music|Electronic music|House music|Techno|Dubstep|Electronica|
        Electronic dance music|Ambient music|Trance music|Music of Latin America|Salsa music|Flamenco|Blues|
        New-age music|Music of Africa|Afrobeat|Christian music|Gospel music|Music of Asia|Carnatic music|Ska|
        Lullaby|Dance music|Jingle (music)|Drum and bass|Opera
        """
)
# Taggers report false genres (a harp as "Christian music"), so a caption says "music" for every genre.
MUSIC = frozenset(["Music", *_GENRES])
# These labels say more than "impacts" does.
NARROWER[IMPACT] = (
    frozenset(KNOCKS)
    | STRUCK
    | MUSIC
    | frozenset(
        names(
            """
            Clock|Tick|Tick-tock|Mechanisms|Chink, clink|Glass|Ping|Ding|Shatter|Smash, crash|Breaking|Coin (dropping)|
            Keys jangling|Dishes, pots, and pans|Cutlery, silverware|Gunshot, gunfire|Machine gun|Cap gun|Explosion|
            Fireworks|Firecracker|Walk, footsteps|Run|Clapping|Finger snapping|Typing|Typewriter|Computer keyboard
            """
        )
    )
)

# Words of emotion, intent, guess and judgement: none of them can be measured.
FORBIDDEN = frozenset(
    words(
        """
        happy sad angry scary joyful cheerful gloomy melancholic melancholy eerie tense dramatic emotional excited
        exciting calm calming peaceful serene relaxing soothing nostalgic romantic lonely anxious nervous proud
        afraid frightened furious delighted tender mood feeling atmosphere beautiful stunning gorgeous lovely nice
        pretty ugly amazing impressive breathtaking epic perfect great good bad boring interesting cinematic seems
        seem seemingly appears apparently perhaps maybe possibly probably likely presumably might may could suggests
        suggesting suggest implies implying indicates evoking evokes conveys conveying wants tries trying intends
        hoping hopes thinks believes about obviously clearly surely suddenly
        """
    )
)


@cache
def phrase(label: str) -> str:
    """Write an AudioSet display name as a noun phrase: "Bark" → "a dog barking", "Harp" → "a harp"."""
    if label in _PHRASES:
        return _PHRASES[label]
    name = label.split(",")[0].split(" (")[0].strip().lower()
    if name.endswith(("ing", "s", "ed", "music", "noise", "transport")):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def spans(tags: Iterable[Tag], join_s: float = 0.5) -> list[tuple[float, float]]:
    """Merge the tags' intervals into disjoint, sorted (start, end) in seconds; close gaps of up to `join_s` seconds."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted((tag.start_s, tag.end_s) for tag in tags):
        if merged and start <= merged[-1][1] + join_s:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
