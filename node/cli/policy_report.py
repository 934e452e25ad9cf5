"""How rules and trials are shown."""

from node.cli.outlook import show_next
from node.cli.output import say, show_pairs, show_table
from node.ledger.policies.templates import Template
from node.ledger.queries.access_views import PoliciesView, PolicyRuleView, PolicyTrial

_OUTCOMES = {
    "granted": ("would be granted at once", "green"),
    "denied": ("would be denied at once", "red"),
    "waiting_consent": ("would wait for the patient's consent", "yellow"),
    "waiting_person": ("would wait for a person at the custodian", "yellow"),
    "rejected": ("could not even be made", "red"),
}
_PARTS = {True: "holds", False: "does not hold", None: "cannot be evaluated"}


def show_policies(view: PoliciesView) -> None:
    """Print the rules that decide on an institution's studies."""
    _show_rules("the consortium, for everybody", view.consortium)
    if view.institution is not None:
        _show_rules(view.institution, view.own)
    say("A deny decides before a permit, a permit before an ask. Without a rule a person decides.")


def show_rule(institution: str | None, rule: PolicyRuleView) -> None:
    """Print one rule."""
    show_pairs(
        [
            ("rule", f"{institution or 'consortium'}/{rule.name}"),
            ("effect", rule.effect),
            ("consent", rule.consent.replace("_", " ")),
            ("condition", _line(rule.condition)),
            ("holds", _reign(rule)),
        ]
    )


def show_template(name: str, template: Template) -> None:
    """Print what a file of rules does."""
    say(f"{name}: {template.title}", "bold")
    for line in template.about.splitlines():
        say(f"  {line}")
    for rule in template.rules:
        say(f"  rule {rule.name}: {rule.effect}, consent {rule.consent.replace('_', ' ')}")


def show_trial(trial: PolicyTrial) -> None:
    """Print what would become of a request, and why."""
    words, style = _OUTCOMES[trial.outcome]
    code = trial.code or trial.refusal
    say(f"The request {words}.", style)
    show_pairs(
        [
            ("decided by", trial.rule),
            ("why", code),
            ("policies say", trial.effect),
            ("consent needed", trial.consent_needed.replace("_", " ")),
            ("consent says", trial.consent_effect),
            ("by consent", trial.consent_id),
        ]
    )
    for rule in trial.rules:
        decides = ", and decides" if rule.decides else ""
        say(f"{rule.rule} ({rule.effect}): {rule.outcome.replace('_', ' ')}{decides}", "bold")
        for text, held in rule.parts:
            say(f"    {_PARTS[held]}: {_line(text)}")
    show_next(trial.next_step, study=trial.question.study_id)


def _show_rules(owner: str, rules: tuple[PolicyRuleView, ...]) -> None:
    if not rules:
        say(f"Rules of {owner}: none.")
        return
    show_table(
        ("rule", "effect", "consent", "condition", "holds"),
        [
            (r.name, r.effect, r.consent.replace("_", " "), _line(r.condition), _reign(r))
            for r in rules
        ],
        title=f"Rules of {owner}",
    )


def _line(condition: str) -> str:
    """Return a condition in one line; white space in it means nothing."""
    return " ".join(condition.split())


def _reign(rule: PolicyRuleView) -> str:
    until = "" if rule.until_height is None else f" to {rule.until_height}"
    return f"from height {rule.from_height}{until}"
