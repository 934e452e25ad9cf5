"""What to do about a refusal: a sentence for each code that a person can do something about.

What a code means is said by the contracts' own tables; here stands only what follows from it.
"""

_ADMINISTRATORS = "an administrator of the institution can"

ADVICE = {
    # who signs
    "role_missing": "sign with the key of a member who has the role (--key FILE), or let an "
    "administrator give it: `radledger member roles`",
    "member_unknown": f"{_ADMINISTRATORS} add the key: `radledger member add`",
    "member_suspended": f"{_ADMINISTRATORS} lift that: `radledger member resume`",
    "institution_suspended": "the consortium lifts it by a vote: "
    "`radledger gov propose institution-resume`",
    "institution_unknown": "`radledger institution list` shows all; the consortium takes one in by "
    "a vote: `radledger gov propose institution-add`",
    "last_administrator": "add another administrator first: `radledger member add`",
    "possession_unproven": "let the holder of the key make the file anew, for this chain and "
    "institution: `radledger member keygen` or `radledger gov application`",
    # studies
    "study_unknown": "look the id up: `radledger study search`",
    "study_retired": "`radledger study show` names the reason and the custodian",
    "study_erased": "nothing brings it back; its custodian can say why",
    "study_offered": "take the offer back first: `radledger study withdraw-offer`",
    "not_custodian": "only the custodian may do this: `radledger study show` names it",
    "not_offered": "ask the custodian to offer it: `radledger study offer`",
    # consent
    "consent_refused": "only the patient, or the custodian with a form, can change that. In an "
    "emergency a clinician can break the glass: `radledger access break-glass`",
    "consent_missing": "record the patient's consent first: `radledger consent grant`",
    "consent_unknown": "look the id up: `radledger consent show`",
    "consent_full": "end some that are not needed: `radledger consent withdraw`",
    "form_missing": "name the signed form (--form FILE), or sign with the patient's key "
    "(--key FILE)",
    "form_unexpected": "leave --form out: the patient's key is enough",
    "patient_decides": "sign with the patient's key (--key FILE)",
    "patient_not_bound": "bind the key to the pseudonym first: `radledger consent bind`",
    "key_not_patient": "add the key first: `radledger member add CARD --role patient`",
    # access
    "own_study": "the institution keeps this study itself, and needs no request",
    "policy_refused": "`radledger policy try` shows which rule refuses, and why",
    "policy_unknown": "look the name up: `radledger policy list`",
    "policy_full": "retire some rules, or write shorter conditions: `radledger policy retire`",
    "request_unknown": "look the id up: `radledger access list`",
    "request_waiting": "`radledger access show` says what it waits for",
    "request_expired": "ask again: `radledger access request`",
    "request_revoked": "ask again if there is still need: `radledger access request`",
    "request_denied": "ask again with other terms: `radledger policy try` shows what would pass",
    "request_not_delivered": "the custodian delivers first: `radledger access deliver`",
    "request_not_received": "confirm the receipt first: `radledger access receive`",
    "uses_spent": "ask again: `radledger access request`",
    "custody_moved": "ask the new custodian: `radledger access request`",
    "heights_over_limit": "`radledger gov parameters` shows the limit",
    "uses_over_limit": "`radledger gov parameters` shows the limit",
    "waiting_full": "let the patient, or the custodian, decide about those that wait first",
    # governance
    "not_validator": "ask an institution that has a vote: `radledger institution list`",
    "proposal_unknown": "look the id up: `radledger gov list`",
    "proposal_expired": "propose it again: `radledger gov propose`",
    "quorum_missing": "`radledger gov show` says who has not voted",
    "change_planned": "wait until that change reigns: `radledger gov show` says when",
    "validator_exists": "a new key takes the place of the old: "
    "`radledger gov propose validator-rotate`",
    "institution_votes": "first `radledger gov propose validator-remove`; then suspend it",
    # load
    "quota_exceeded": "wait until what the institution handed in is executed, then try again",
    "mempool_full": "try again in a moment",
    "busy": "try again in a moment",
    "duplicate": "it is on its way: `radledger tx ID` shows what came of it",
}


def lines_about(code: str, sentence: str, rule: str | None = None) -> list[str]:
    """Return what a person is told about a refusal: what was refused, and what to do about it."""
    by = f", by the rule {rule}" if rule else ""
    told = [f"refused ({code}){by}: {sentence}"]
    if code in ADVICE:
        told.append(f"what to do: {ADVICE[code]}")
    return told
