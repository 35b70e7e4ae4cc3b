"""Names for simulated series of movies and chains of places: each genre has its own words, so that names tell it."""

from collections.abc import Mapping

import numpy as np

# Genre: twelve first words, twelve second words. No word belongs to two genres, so that a title tells its genre.
_WORDS = {
    "Action": (
        "Steel Rapid Burning Final Lethal Broken Savage Iron Double Hard Maximum Sudden",
        "Strike Bullet Pursuit Impact Fury Fist Justice Force Target Vengeance Soldier Ambush",
    ),
    "Adventure": (
        "Lost Hidden Forgotten Endless Daring Emerald Sunken Uncharted Distant Golden Restless Sacred",
        "Island Treasure Voyage Expedition Canyon Jungle Compass Caravan Temple River Summit Horizon",
    ),
    "Animation": (
        "Tiny Bouncing Rainbow Jolly Sleepy Wobbly Sparkling Fuzzy Pocket Giggling Patchwork Paper",
        "Penguin Dragonfly Kitten Robot Balloon Puppy Hedgehog Snowman Turtle Lantern Toybox Squirrel",
    ),
    "Comedy": (
        "Clumsy Crazy Awkward Lucky Hopeless Silly Reluctant Accidental Borrowed Noisy Perfect Backward",
        "Wedding Vacation Neighbor Roommate Butler Dentist Reunion Divorce Babysitter Landlord Honeymoon Cousin",
    ),
    "Crime": (
        "Dirty Crooked Stolen Silent Cold Velvet Guilty Counterfeit Midnight Ruthless Private Loaded",
        "Heist Alibi Detective Syndicate Diamond Verdict Informant Ransom Witness Gangster Docket Smuggler",
    ),
    "Documentary": (
        "Inside Beyond Remembering Understanding Measuring Mapping Saving Rebuilding Filming Feeding Exploring Knowing",
        "Glaciers Whales Factories Orchestras Elections Vaccines Bees Archives Harvests Subways Deserts Volcanoes",
    ),
    "Drama": (
        "Quiet Autumn Fading Gentle Unspoken Ordinary Winter Empty Fragile Patient Bitter Faithful",
        "Daughter Garden Letter Promise Silence Mother Orchard Window Farewell Stranger Kitchen Inheritance",
    ),
    "Fantasy": (
        "Enchanted Crimson Ancient Silver Cursed Moonlit Crystal Wandering Eternal Twilight Thorned Radiant",
        "Kingdom Wizard Harbor Sorceress Throne Griffin Prophecy Forest Unicorn Amulet Oracle Scepter",
    ),
    "Horror": (
        "Screaming Bloody Haunted Rotten Crawling Nameless Buried Hollow Whispering Pale Wicked Starving",
        "Cellar Corpse Asylum Nightmare Cemetery Doll Scarecrow Possession Crypt Ghoul Attic Parasite",
    ),
    "Musical": (
        "Dancing Singing Swinging Tapping Glittering Melodic Broadway Waltzing Humming Jazzy Velveteen Harmonic",
        "Ballroom Chorus Serenade Trumpet Cabaret Rhapsody Encore Piano Melody Orchestra Spotlight Tango",
    ),
    "Mystery": (
        "Missing Locked Veiled Invisible Secret Thirteenth Vanishing Masked Cryptic Unsolved Faceless Shuttered",
        "Manuscript Corridor Portrait Riddle Passenger Heirloom Footprint Cipher Manor Lighthouse Clock Mirror",
    ),
    "Romance": (
        "Tender Parisian Secretly Forever Sweet Blushing Beloved Summer Longing Devoted Starlit Dearest",
        "Kiss Valentine Sweetheart Rendezvous Bouquet Proposal Heart Bride Embrace Lovers Rose Confession",
    ),
    "Sci-Fi": (
        "Quantum Galactic Orbital Cybernetic Binary Stellar Neon Atomic Synthetic Cosmic Parallel Magnetic",
        "Android Nebula Starship Paradox Colony Reactor Wormhole Clone Satellite Asteroid Terminal Gravity",
    ),
    "Thriller": (
        "Deadly Hostile Fatal Hunted Vanished Desperate Sleepless Trapped Poisoned Suspicious Relentless Blackmailed",
        "Obsession Conspiracy Hostage Deception Countdown Fugitive Betrayal Surveillance Impostor Threat Intruder Trap",
    ),
    "War": (
        "Fallen Brave Marching Besieged Frozen Loyal Wounded Muddy Unbroken Occupied Scarlet Distinguished",
        "Battalion Trench Regiment Bunker Brigade Submarine Armistice Bridgehead Cavalry Squadron Frontline Commander",
    ),
    "Western": (
        "Dusty Lonesome Outlaw Wild Prairie Rawhide Rusty Thundering Blazing Crooning Tumbleweed Bareback",
        "Sheriff Saloon Stagecoach Ranch Gunslinger Mustang Rodeo Homestead Spurs Deputy Canteen Marshal",
    ),
}
_CITIES = (
    "Avalon Bristol Cairo Dakota Eldorado Florence Geneva Havana Istanbul Jakarta Kyoto Lisbon Madrid Nairobi Oslo",
    "Prague Quebec Rome Shanghai Tangier Utah Venice Warsaw Yukon Zanzibar",
)

GENRES = tuple(_WORDS)
"""Genre names, sorted as MovieLens prints them; the simulator's genre ids index this tuple."""

# The same for places, whose kinds take the genres' ids: six first words, six last ones.
_PLACE_WORDS = {
    "Bakery": ("Flour Butter Crusty Almond Honeyed Sunrise", "Bakery Breads Patisserie Oven Bakehouse Croissants"),
    "Bar": ("Rusty Whiskey Foggy Brass Amber Smoky", "Bar Tavern Taproom Pub Lounge Saloon"),
    "Bookstore": ("Dusty Paper Inkwell Turning Candlelit Quill", "Books Bookshop Pages Booksellers Stacks Bookstore"),
    "Coffee shop": ("Roasted Espresso Morning Steaming Velvet Drip", "Coffee Cafe Beans Roasters Brews Lattes"),
    "Garden center": ("Blooming Mossy Fern Sunflower Rooted Ivy", "Nursery Gardens Greenhouse Seeds Plants Blossoms"),
    "Gym": ("Muscle Kinetic Titan Sweat Barbell Endurance", "Gym Fitness Athletics Training Crossfit Boxing"),
    "Hair salon": ("Curly Glossy Scissor Trimmed Wavy Chic", "Salon Hair Barbers Stylists Cuts Blowouts"),
    "Hardware store": ("Sturdy Hammered Bolted Trusty Copper Handy", "Hardware Tools Lumber Supply Fasteners Paints"),
    "Hotel": ("Grand Royal Seaside Starlight Plaza Palm", "Hotel Inn Suites Lodge Resort Motel"),
    "Mexican restaurant": ("Salsa Verde Cantina Fiesta Agave Chipotle", "Tacos Burritos Taqueria Cocina Nachos Grill"),
    "Museum": ("Marble Antique Heritage Modern Fossil Gilded", "Museum Gallery Collection Exhibits Archive Hall"),
    "Music venue": ("Electric Vinyl Echo Bassline Jukebox Neon", "Ballroom Stage Theater Amphitheater Club Arena"),
    "Park": ("Shady Willow Riverside Oak Meadow Lakeview", "Park Trails Playground Commons Preserve Picnics"),
    "Pet store": ("Wagging Furry Whisker Happy Scaly Feathered", "Pets Paws Aquariums Kennels Grooming Terrariums"),
    "Pharmacy": ("Healing Mercury Apothecary Remedy Herbal Tonic", "Pharmacy Drugs Chemists Prescriptions Clinic Care"),
    "Pizza restaurant": ("Cheesy Brooklyn Woodfired Salami Basil Crisp", "Pizza Pizzeria Slices Pies Pizzas Calzones"),
}  # fmt: skip

PLACE_KINDS = tuple(_PLACE_WORDS)
"""Kinds of places, by the simulator's genre ids."""


def series_titles(genres: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Titles "The <first> <second>", and "… of <city>" once a genre's 144 pairs are used up.

    Args:
      genres: `[series]` genre id of every series.
      rng: decides which pair is used when.

    Returns:
      A title per series, distinct while a genre has at most 3,744 series, and repeating after that.
    """
    return _names(genres, rng, _WORDS, "The ", " of ")


def chain_names(kinds: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Names "<first> <last>" of chains of places, and "… <city>" once a kind's 36 pairs are used up.

    Args:
      kinds: `[chains]` index into `PLACE_KINDS`.
      rng: decides which pair is used when.

    Returns:
      A name per chain, distinct while a kind has at most 936 chains, and repeating after that.
    """
    return _names(kinds, rng, _PLACE_WORDS, "", " ")


def _names(
    genres: np.ndarray, rng: np.random.Generator, words: Mapping[str, tuple[str, str]], article: str, of: str
) -> list[str]:
    endings = ["", *(f"{of}{city}" for part in _CITIES for city in part.split())]
    names = [""] * len(genres)
    for genre, lists in enumerate(words.values()):
        first, second = (part.split() for part in lists)
        pairs = rng.permutation([f"{article}{a} {b}" for a in first for b in second])
        for n, series in enumerate(np.flatnonzero(genres == genre)):
            names[series] = pairs[n % len(pairs)] + endings[n // len(pairs) % len(endings)]
    return names
