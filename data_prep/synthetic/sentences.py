"""Choose random sentences to speak, in plain English, from a small grammar. Each says something true.

Words with a homophone ("oars", "ores") are left out, because nobody could tell which of the two was said. So are words
that the voices of `speech` pronounce as another word ("rust" sounds like "rest", "wool" like "well", "kettle" like
"cattle", in every voice that was tried): the label would be false.
"""

import numpy as np

SHORTEST = "Snow is cold."
_FACTS = (
    "Snow is cold.",
    "Ice is frozen water.",
    "Grass is green.",
    "Honey is sweet.",
    "Lemons are sour.",
    "Bees make honey.",
    "Cats like warm places.",
    "Fish live in water.",
    "Owls hunt at night.",
    "Rain falls from clouds.",
    "Stars shine at night.",
    "The moon goes round the earth.",
    "The earth goes round the sun.",
    "Salt dissolves in water.",
    "Bread is made from flour.",
    "Paper is made from wood.",
    "Glass is made from sand.",
    "Sound travels through air.",
    "Light is faster than sound.",
    "Birds sing in the morning.",
    "Spiders have eight legs.",
    "Insects have six legs.",
    "A week has seven days.",
    "A year has twelve months.",
    "An hour has sixty minutes.",
    "A square has four sides.",
    "A triangle has three corners.",
    "Two and two make four.",
    "Five and three make eight.",
    "Ten is half of twenty.",
    "Trees grow towards the light.",
    "Rivers flow to the sea.",
    "Iron sinks and wood floats.",
    "Magnets attract iron.",
    "Gold is yellow.",
    "Elephants are larger than mice.",
    "Fire is hot.",
    "Milk comes from cows.",
    "Water boils at one hundred degrees.",
    "Leaves fall in the autumn.",
    "The sun rises in the east.",
    "The sun sets in the west.",
)
# Each subject with the two ways to complete "A drum is …".
_COMPLETIONS = """
    A drum: played with two sticks / a percussion instrument
    A piano: played with both hands / a keyboard instrument
    A violin: played with a bow / a string instrument
    A guitar: plucked / a string instrument
    A flute: blown / a wind instrument
    A trumpet: blown / a brass instrument
    A hammer: held in the hand / a tool
    A candle: used to give light / made of wax
    A bicycle: a vehicle with two wheels / steered with both hands
    A boat: used on water / moved by the wind
    A clock: used to tell the time / wound or driven by a motor
    A letter: written on paper / carried by the post
"""
_SUBJECTS = {
    subject.strip(): tuple(completions.split(" / "))
    for subject, completions in (line.split(": ") for line in _COMPLETIONS.strip().splitlines())
}
_FRUIT = ("Apples", "Cherries", "Lemons", "Peaches", "Plums")
_ANIMALS = ("Dogs", "Cats", "Cows", "Ducks", "Frogs", "Lions", "Horses")


def sentence(rng: np.random.Generator) -> str:
    """Choose a random sentence of 3 to 8 words, in plain ASCII."""
    form = rng.integers(10)
    if form < 6:
        return str(rng.choice(_FACTS))
    if form < 8:
        subject = str(rng.choice(list(_SUBJECTS)))
        return f"{subject} is {rng.choice(_SUBJECTS[subject])}."
    if form == 8:
        return f"{rng.choice(_FRUIT)} grow on trees."
    first, second = rng.choice(_ANIMALS, 2, replace=False)
    return f"{first} and {str(second).lower()} are animals."
