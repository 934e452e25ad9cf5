"""The coarse words that may stand on the chain: modality and body region, through fixed lists.

A word that is not listed never passes, whatever a file says, because free text may identify.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from node.imaging import commitment
from node.ledger.contracts.vocabulary import MODALITIES, REGIONS

OTHER_MODALITY = "OT"  # DICOM's own word for "other"
OTHER_REGION, UNKNOWN_REGION = "other", "unknown"
# They accompany images; a CT with its report is a CT.
_COMPANIONS = frozenset(
    {"DOC", "FID", "KO", "PLAN", "PR", "REG", "RTINTENT", "RWV", "SEG", "SMR", "SR"}
)

# Body Part Examined, the defined terms of PS3.16 Annex L and their common older spellings.
_REGION_TERMS = {
    "abdomen": """ABDOMEN ADRENAL AORTA ABDOMINALAORTA APPENDIX BILEDUCT COLON DUODENUM GALLBLADDER
        ILEUM JEJUNUM KIDNEY LIVER PANCREAS SMALLBOWEL SPLEEN STOMACH UPPERABDOMEN ABDOMENPELVIS
        ABDOMENANDPELVIS LARGEINTESTINE RENAL UGITRACT""",
    "breast": "BREAST AXILLA MAMMA",
    "chest": """CHEST THORAX LUNG MEDIASTINUM RIB RIBS STERNUM BRONCHUS ESOPHAGUS TRACHEA CLAVICLE
        SCAPULA CHESTABDOMEN CHESTABDPELVIS CHESTABDOMENPELVIS THORACICAORTA PLEURA DIAPHRAGM""",
    "head": """HEAD BRAIN SKULL FACE EYE EAR NOSE JAW JAWREGION MANDIBLE MAXILLA ORBIT SINUS SINUSES
        PARANASALSINUS PARANASALSINUSES TEMPORALMANDIBULARJOINT TMJ TEETH TOOTH MOUTH TONGUE ZYGOMA
        PITUITARY IAC INTERNALAUDITORYCANAL RETINA PAROTID SALIVARYGLAND HEADNECK""",
    "heart": "HEART CORONARYARTERY CORONARY CORONARIES CARDIAC PERICARDIUM",
    "lower_limb": """ANKLE CALCANEUS CALF EXTREMITYLOWER FEMUR FIBULA FOOT HIP KNEE LEG LOWERLIMB
        LOWERLEG LOWEREXTREMITY PATELLA THIGH TIBIA TIBIAFIBULA TOE HEEL THUMBTOE""",
    "neck": "NECK THYROID PARATHYROID LARYNX PHARYNX CAROTID CAROTIDARTERY",
    "pelvis": """PELVIS BLADDER PROSTATE RECTUM UTERUS OVARY TESTIS SCROTUM PENIS VAGINA ANUS ANAL
        CERVIX ILIUM PUBIS URETHRA FETUS PREGNANCY ILIACARTERY""",
    "spine": """SPINE CSPINE TSPINE LSPINE LSSPINE SSPINE COCCYX SACRUM CTSPINE TLSPINE
        CERVICALSPINE THORACICSPINE LUMBARSPINE SIJOINT SACROILIACJOINT WHOLESPINE SPINALCORD""",
    "upper_limb": """ARM ELBOW EXTREMITYUPPER FINGER FOREARM HAND HUMERUS RADIUS RADIUSULNA SHOULDER
        THUMB ULNA UPPERARM UPPERLIMB UPPEREXTREMITY WRIST ACJOINT""",
    "whole_body": "WHOLEBODY BODY",
}
_REGION_OF = {term: region for region, terms in _REGION_TERMS.items() for term in terms.split()}


class Described(Protocol):
    """An instance of which some elements are known."""

    def text(self, tag: int) -> str:
        """Return the text of the top-level element `tag`, or "" if it has none."""


def modality_of(files: Iterable[Described]) -> str:
    """Return the modality of a study of `files`: the most frequent, images before companions."""
    words = Counter(read.text(commitment.MODALITY).upper() for read in files)
    words.pop("", None)
    images = {word: count for word, count in words.items() if word not in _COMPANIONS}
    word = _most_frequent(images or words)
    return word if word in MODALITIES else OTHER_MODALITY


def region_of(files: Iterable[Described]) -> str:
    """Return the coarse body region of a study of `files`, the most frequent one named."""
    regions = Counter(_region(read.text(commitment.BODY_PART)) for read in files)
    if len(regions) > 1:
        regions.pop(UNKNOWN_REGION, None)
    region = _most_frequent(regions)
    return region if region in REGIONS else UNKNOWN_REGION


def body_part_term(body_part: str) -> str | None:
    """Return the term of PS3.16 Annex L that a Body Part Examined is, letters only; None for what
    is none, as free text."""
    term = _letters(body_part)
    return term if term in _REGION_OF else None


def _letters(text: str) -> str:
    return "".join(character for character in text.upper() if character.isalpha())


def _region(body_part: str) -> str:
    term = _letters(body_part)
    return _REGION_OF.get(term, OTHER_REGION) if term else UNKNOWN_REGION


def _most_frequent(counts: dict[str, int]) -> str:
    return min(counts, key=lambda word: (-counts[word], word), default="")
