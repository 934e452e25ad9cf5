"""The fixed words that an operation may carry, and how sizes become coarse buckets.

Together with random ids and salted roots these are all that the chain says about a study. A word
that is not listed here is refused by form, so no description, name or date can slip in.
"""

import re

_MODALITIES = """
ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DMS DG DOC DX ECG EEG EMG EOG EPS ES FID GM HC
HD IO IOL IVOCT IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA
PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT
RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC
"""
_REGIONS = """
abdomen breast chest head heart lower_limb neck other pelvis spine unknown upper_limb whole_body
"""

# DICOM PS3.3 C.7.3.1.1.1, the defined terms that are not retired.
MODALITIES = frozenset(_MODALITIES.split())

# Coarse on purpose: a finer body part narrows down a patient.
REGIONS = frozenset(_REGIONS.split())

DERIVATION_KINDS = frozenset({"report", "segmentation", "ai_result", "measurement", "reformat"})

RETIRE_REASONS = frozenset(
    {"registered_in_error", "wrong_subject", "superseded", "quality", "retention_ended", "other"}
)

ERASE_REASONS = frozenset({"subject_request", "registered_in_error", "court_order", "other"})

# HL7 v3 PurposeOfUse (2.16.840.1.113883.5.8), the part that hospitals ask for: treatment, emergency
# treatment, care management, operations, payment, research, clinical trial, patient's request,
# public health, quality improvement, legal.
_PURPOSES = """
CAREMGT CLINTRCH ETREAT HLEGAL HOPERAT HPAYMT HQUALIMP HRESCH PATRQT PUBHLTH TREAT
"""
PURPOSES = frozenset(_PURPOSES.split())
BREAK_GLASS_PURPOSES = frozenset({"TREAT", "ETREAT"})

# HL7 v3 Confidentiality (2.16.840.1.113883.5.25): normal, restricted, very restricted.
CONFIDENTIALITY = frozenset({"N", "R", "V"})

# An ISO 3166-1 alpha-2 code by its form; whole-string match. The user-assigned ZZ is "not stated".
COUNTRIES = re.compile(r"[A-Z]{2}")
COUNTRY_NOT_STATED = "ZZ"

DENY_REASONS = frozenset(
    {"not_justified", "wrong_study", "purpose_not_allowed", "duplicate", "not_available", "other"}
)
REVOKE_REASONS = frozenset(
    {
        "patient_request",
        "no_longer_needed",
        "misuse",
        "key_compromised",
        "granted_in_error",
        "other",
    }
)
BREAK_GLASS_REASONS = frozenset(
    {"life_threatening", "unconscious", "custodian_unreachable", "urgent_care", "other"}
)
FINDINGS = frozenset({"justified", "unjustified"})

INSTANCE_BUCKET_MAX = 20
SIZE_BUCKET_MAX = 20
_MEBIBYTE = 1 << 20


def instance_bucket(count: int) -> int:
    """Return the bucket of `count` instances: 0 for one, b for more than 2**(b-1) and at most 2**b.

    The last bucket, `INSTANCE_BUCKET_MAX`, has no upper end. Raises ValueError unless `count` > 0.
    """
    if count < 1:
        raise ValueError("a study has at least one instance")
    return min((count - 1).bit_length(), INSTANCE_BUCKET_MAX)


def size_bucket(size_bytes: int) -> int:
    """Return the bucket of a size: 0 up to 1 MiB, b for over 2**(b-1) and at most 2**b MiB.

    The last bucket, `SIZE_BUCKET_MAX`, has no upper end. Raises ValueError if `size_bytes` < 0.
    """
    if size_bytes < 0:
        raise ValueError("a size is not negative")
    return min((max(size_bytes - 1, 0) // _MEBIBYTE).bit_length(), SIZE_BUCKET_MAX)
