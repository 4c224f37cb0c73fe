"""Teacher and student in the target: whether the student is worth deploying, and the sentences that say so."""

from collections.abc import Sequence

from pbd.records import Deployment, Latency, ModelFacts, RunReport
from pbd.report.words import ABSENT, count, factor, images, is_slower, latency, percent

_INT8 = "-int8"


def is_int8(row: Deployment) -> bool:
    """Return whether a network is in 8-bit integers."""
    return row.target.endswith(_INT8)


def form(rows: Sequence[Deployment], model: str, int8: bool) -> Deployment | None:
    """Return the row of `teacher` or `student` in one precision, if there is one."""
    return next((row for row in rows if row.model == model and is_int8(row) == int8), None)


def forms(rows: Sequence[Deployment], model: str) -> list[Deployment]:
    """Return the rows of `teacher` or `student`: in float32 and in 8-bit integers, as far as they were measured."""
    return [row for row in rows if row.model == model]


def at_batch(row: Deployment, batch: int) -> Latency | None:
    """Return the latency with this number of images in a pass, if it was measured."""
    return next((each for each in row.latency if each.batch == batch), None)


def batches(rows: Sequence[Deployment]) -> list[int]:
    """Return the batch sizes that were measured, in ascending order."""
    return sorted({each.batch for row in rows for each in row.latency})


def fastest_student(rows: Sequence[Deployment]) -> Deployment | None:
    """Return the student's form that is faster with the smallest batch; `None` if nothing was deployed."""

    def speed(row: Deployment) -> float:
        return min(row.latency, key=lambda each: each.batch).times_as_fast

    return max((row for row in forms(rows, "student") if row.latency), key=speed, default=None)


def better_teacher(rows: Sequence[Deployment]) -> Deployment | None:
    """Return the form of the teacher that is the better choice than the student; `None` if there is none.

    The teacher is the better choice if each form of the student (in float32, in 8-bit integers) loses to a form of the
    teacher on both axes:

    * speed: with no batch size (1 and 32) the student is faster, as rounded to two decimals (1.00 times is a tie);
    * quality: its test accuracy, without labels its agreement with the teacher, is not higher, as rounded to a tenth
      of a percent.

    A smaller size compensates for neither axis. It decides only if both are tied: the student wins if it is smaller.
    Returned is the form that the student's faster form loses to, preferably that in 8-bit integers.
    """
    winners = {student: _winner(student, rows) for student in forms(rows, "student")}
    fastest = fastest_student(rows)
    return None if fastest is None or None in winners.values() else winners[fastest]


def _winner(student: Deployment, rows: Sequence[Deployment]) -> Deployment | None:
    """Return the form of the teacher, preferably in 8-bit integers, that a form of the student loses to, if any."""
    teachers = sorted(forms(rows, "teacher"), key=is_int8, reverse=True)
    return next((teacher for teacher in teachers if _loses(student, teacher)), None)


def _loses(student: Deployment, teacher: Deployment) -> bool:
    speeds, gain = _speeds(student, teacher), _quality(student) - _quality(teacher)
    if any(speed > 1 for speed in speeds) or gain > 0:
        return False
    tied = all(speed == 1 for speed in speeds) and gain == 0
    return not (tied and student.size_bytes < teacher.size_bytes)


def _speeds(student: Deployment, teacher: Deployment) -> list[float]:
    """Return how many times as fast as the teacher the student is with each batch size, as shown."""
    speeds = [each.times_as_fast_as_int8 if is_int8(teacher) else each.times_as_fast for each in student.latency]
    return [round(speed, 2) for speed in speeds if speed is not None]


def _quality(row: Deployment) -> float:
    """Return the test accuracy, without labels the agreement with the teacher, in percent as shown."""
    return round(100 * (row.test_agreement if row.test_accuracy is None else row.test_accuracy), 1)


def sentences(report: RunReport) -> tuple[str, ...]:
    """Return what to know before deploying the student.

    If the teacher is the better choice, the first sentence says so. The next gives speed and quality of the student's
    faster form in the target; a last one gives the speed with larger batches.
    """
    rows = report.deployments
    student, teacher = fastest_student(rows), form(rows, "teacher", int8=False)
    if student is None or teacher is None:
        return (_without_target(report.teacher, report.student),)
    first, *others = batches([student])
    place = f"In {teacher.target} with {images(first)} at a time"
    speed = f"{_name(student, rows)} is {_speed_at(student, first)}"
    quality = _qualities(student, teacher, form(rows, "teacher", int8=True))
    more = [f"With {images(batch)} at a time it is {_speed_at(student, batch)}." for batch in others]
    return tuple(filter(None, (verdict(rows), f"{place}: {speed}; {quality}.", *more)))


def verdict(rows: Sequence[Deployment]) -> str:
    """Return the sentence that the teacher is the better choice (see `better_teacher`), empty if it is not."""
    teacher, student = better_teacher(rows), fastest_student(rows)
    if teacher is None or student is None:
        return ""
    smaller = student.size_bytes < teacher.size_bytes
    same = {1.0, *_speeds(student, teacher)} == {1.0} and _quality(student) == _quality(teacher)
    choice = "as good as the student" if same and student.size_bytes == teacher.size_bytes else "the better choice"
    start = f"{_name(teacher, rows)} is {choice} in {teacher.target.removesuffix(_INT8)}"
    reasons = [_speed_reason(student, teacher, rows), _quality_reason(student, teacher)]
    if not smaller:
        word = "smaller" if teacher.size_bytes < student.size_bytes else "as small"
        reasons.append(f"{word} ({count(teacher.size_bytes, 'B')} against {count(student.size_bytes, 'B')})")
    text = f"{start}{' unless size decides' * smaller}: {', '.join(reasons[:-1])}, and {reasons[-1]}"
    if smaller:
        text += f"; the student is smaller ({count(student.size_bytes, 'B')} against {count(teacher.size_bytes, 'B')})"
    for other in forms(rows, "student"):
        if not _loses(other, teacher) and (winner := _winner(other, rows)):
            text += f"; {_name(other, rows)} is neither faster nor more accurate than {_name(winner, rows)}"
    return f"{text[0].upper()}{text[1:]}."


def _speed_reason(student: Deployment, teacher: Deployment, rows: Sequence[Deployment]) -> str:
    speeds = _speeds(student, teacher)
    level = all(speed == 1 for speed in speeds)
    word = "as fast as" if level else "faster than" if all(speed < 1 for speed in speeds) else "never slower than"
    times = [
        f"{latency(fast.seconds)} against {latency(slow.seconds)} with {images(slow.batch)}"
        for slow in student.latency
        if (fast := at_batch(teacher, slow.batch)) is not None
    ]
    return f"{word} {_name(student, rows)} ({', '.join(times)})"


def _quality_reason(student: Deployment, teacher: Deployment) -> str:
    higher, lower = _quality(teacher), _quality(student)
    if student.test_accuracy is not None:
        return f"{'more' if higher > lower else 'as'} accurate ({higher:.1f} against {lower:.1f}%)"
    if not is_int8(teacher):
        return f"the student agrees with it on {lower:.1f}% of the test images"
    word = "more often" if higher > lower else "as often"
    return f"{word} in agreement with the teacher ({higher:.1f} against {lower:.1f}%)"


def _name(row: Deployment, rows: Sequence[Deployment]) -> str:
    """Return the name of a network in a sentence; the teacher in float32 is the reference, so it is "the teacher"."""
    if is_int8(row):
        return f"the {row.model} in 8-bit integers"
    several = len(forms(rows, row.model)) > 1 and row.model == "student"
    return f"the {row.model}{' in float32' * several}"


def _speed_at(student: Deployment, batch: int) -> str:
    row = at_batch(student, batch)
    if row is None:
        return ABSENT
    as_teacher = f"{_times(row.times_as_fast)} as fast as the teacher{_slower(row.times_as_fast)}"
    if row.times_as_fast_as_int8 is None:
        return as_teacher
    as_int8 = row.times_as_fast_as_int8
    return f"{as_teacher} and {_times(as_int8)} as fast as the teacher in 8-bit integers{_slower(as_int8)}"


def _times(times_as_fast: float) -> str:
    return f"{factor(times_as_fast)} times"


def _slower(times_as_fast: float) -> str:
    return " (slower)" if is_slower(times_as_fast) else ""


def _qualities(student: Deployment, teacher: Deployment, int8: Deployment | None) -> str:
    """Return the quality of the student, with that of the teacher in float32 and in 8-bit integers in brackets."""
    as_int8 = f"in 8-bit integers {f'{_quality(int8):.1f}%' if int8 else ABSENT}"
    if student.test_accuracy is None:
        return f"agreement with the teacher on the test images {_quality(student):.1f}% (teacher {as_int8})"
    return f"test accuracy {_quality(student):.1f}% (teacher {_quality(teacher):.1f}%, {as_int8})"


def _without_target(teacher: ModelFacts, student: ModelFacts) -> str:
    """Return the sentence for a run without deployments."""
    if student.test_accuracy is None:
        quality = f"Agreement with the teacher on the test images {percent(student.test_agreement, 1)}"
    else:
        quality = f"Test accuracy {percent(student.test_accuracy, 1)} (teacher {percent(teacher.test_accuracy, 1)})"
    return f"{quality}; speed in a target: {ABSENT}."
