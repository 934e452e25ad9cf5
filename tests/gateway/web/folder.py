"""Holdings over a plain folder of DICOM files, for tests."""

from node.gateway.holdings import HeldInstance, StudyRow, Withheld, in_order, make_study
from node.gateway.web import attributes as tags
from node.gateway.web.attributes import first, from_pairs, read_attributes
from node.gateway.web.files import _skip_meta


class FolderHoldings:
    """What lies in the given files; `withheld` has Study Instance UIDs that may not be opened."""

    def __init__(self, paths=()):
        self.withheld = set()
        self.opened = 0
        self._instances = {}
        for path in paths:
            self.add(path)

    def add(self, path):
        with path.open("rb") as stream:
            attributes = from_pairs(read_attributes(stream))
            stream.seek(0)
            syntax = _skip_meta(stream, path.stat().st_size).uid
        study = first(attributes, tags.STUDY_INSTANCE)
        instance = HeldInstance(
            study,
            first(attributes, tags.SERIES_INSTANCE),
            first(attributes, tags.SOP_INSTANCE),
            first(attributes, tags.SOP_CLASS),
            syntax,
            path.stat().st_size,
            attributes,
            path,
        )
        self._instances.setdefault(study, []).append(instance)
        return instance

    def studies(self):
        studies = (self.study(uid) for uid in self._instances)
        return in_order(StudyRow(study.uid, study.attributes) for study in studies)

    def study(self, uid):
        return make_study(uid, self._instances[uid]) if uid in self._instances else None

    def open(self, instance):
        if instance.study_uid in self.withheld:
            raise Withheld
        self.opened += 1
        return instance.place.open("rb")
