"""How requests are shown."""

from rich.text import Text

from node.cli.outlook import next_plain, show_next
from node.cli.output import say, show_pairs, show_table
from node.ledger.queries.access_views import RequestPage, RequestView

_STYLES = {
    "granted": "green",
    "delivered": "green",
    "received": "green",
    "waiting_consent": "yellow",
    "waiting_person": "yellow",
}


def request_next(view: RequestView) -> dict[str, object]:
    """Return what happens next with a request, for programs."""
    return next_plain(view.next_step, **_ids(view))


def show_request(view: RequestView) -> None:
    """Print a request whole."""
    terms = [view.purpose, f"as {view.role}"]
    terms += ["de-identified"] if view.deidentified else []
    terms += ["in an emergency, against consent and policy"] if view.break_glass else []
    show_pairs(
        [
            ("request", view.id),
            ("study", view.study_id),
            ("asked by", f"{view.institution}, at height {view.asked_height}"),
            ("custodian", view.custodian),
            ("subject", view.subject_id),
            ("for", ", ".join(terms)),
            ("state", _state(view)),
            ("decided", _decision(view)),
            ("permits", _permits(view)),
            ("used", f"{view.uses} of {view.uses_max} times"),
            ("reason", view.reason or view.break_glass_reason),
            ("review", view.finding),
        ]
    )
    show_next(view.next_step, **_ids(view))
    if view.review is not None:
        show_next(view.review, **_ids(view))


def show_page(page: RequestPage) -> None:
    """Print a list of requests."""
    if page.requests:
        show_table(
            ("request", "study", "asked by", "custodian", "purpose", "state", "height", "next"),
            [
                (
                    view.id,
                    view.study_id,
                    view.institution,
                    view.custodian,
                    view.purpose,
                    _state(view),
                    view.asked_height,
                    view.next_step.sentence,
                )
                for view in page.requests
            ],
        )
    elif page.next_cursor is None:
        say("No such request.")
    if page.next_cursor is not None:
        say(f"There may be more: --cursor {page.next_cursor}")


def _ids(view: RequestView) -> dict[str, bytes]:
    return {"request": view.id, "study": view.study_id, "subject": view.subject_id}


def _state(view: RequestView) -> Text:
    return Text(view.state.replace("_", " for "), _STYLES.get(view.state, "red"))


def _decision(view: RequestView) -> str | None:
    if view.decided_height is None:
        return f"not yet; {view.rule} leaves it open" if view.rule else None
    by = f" by {view.decided_by}" if view.decided_by else ""
    rule = f" ({view.rule})" if view.rule else ""
    return f"at height {view.decided_height}{by}{rule}"


def _permits(view: RequestView) -> Text:
    if not view.permitted:
        return Text(f"no: {view.refusal}", "red")
    last = "" if view.expires_height is None else f" up to height {view.expires_height - 1}"
    return Text(f"yes, from height {view.valid_from}{last}", "green")
