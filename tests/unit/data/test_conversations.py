"""Both shapes of chats, and everything that is no chat."""

import pytest

from fox.data.conversations import conversation_of
from fox.data.quarantine import BadRecord


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def sent(sender: str, *texts: str) -> list[dict[str, str]]:
    return [{"sender": sender, "text": text} for text in texts]


def test_messages_with_roles_are_kept_without_their_extra_keys():
    chat = conversation_of(
        [said("system", "Be brief."), {**said("user", "Hi"), "name": "Ann"}, said("assistant", "Hello")]
    )
    assert chat.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    )
    assert (chat.unanswered_turns, chat.blank_texts) == (0, 0)


def test_the_assistant_may_begin():
    assert conversation_of([said("assistant", "Welcome")]).messages == ({"role": "assistant", "content": "Welcome"},)


def test_what_follows_the_last_answer_is_cut_and_counted():
    chat = conversation_of([said("user", "a"), said("assistant", "b"), said("user", "c"), said("user", "d")])
    assert [message["content"] for message in chat.messages] == ["a", "b"]
    assert chat.unanswered_turns == 2


def test_turns_with_senders_become_user_and_assistant():
    chat = conversation_of(
        [sent("x", "Hi", "there"), sent("y", "Hello"), sent("y", "you"), sent("x", "?"), sent("y", "!")]
    )
    assert [(message["role"], message["content"]) for message in chat.messages] == [
        ("user", "Hi\nthere"),
        ("assistant", "Hello\nyou"),
        ("user", "?"),
        ("assistant", "!"),
    ]


def test_a_turn_of_two_senders_is_parted_and_blank_texts_are_left_out():
    chat = conversation_of([sent("z", " "), sent("x", "Hi", "") + sent("y", "Hello"), [], sent("x", "unanswered")])
    assert [message["content"] for message in chat.messages] == ["Hi", "Hello"]
    assert chat.messages[0]["role"] == "user"
    assert (chat.unanswered_turns, chat.blank_texts) == (1, 2)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages is not a list"),
        ({"role": "user"}, "messages is not a list"),
        ([], "messages is empty"),
        (["Hi"], "a message is not an object"),
        ([said("user", "Hi"), sent("x", "Hi")], "a message is not an object"),
        ([said("user", "Hi")], "no assistant turn"),
        ([said("human", "Hi"), said("assistant", "Hello")], "a role is none of system, user, assistant"),
        ([said(["user"], "Hi"), said("assistant", "Hello")], "a role is none of"),
        ([{"content": "Hi"}, said("assistant", "Hello")], "a role is none of"),
        ([said("user", None), said("assistant", "Hello")], "a message's content is not a string"),
        ([said("user", [{"type": "text"}]), said("assistant", "Hello")], "a message's content is not a string"),
        ([said("user", "Hi"), said("assistant", " \n\0")], "a message's content is empty"),
        ([said("user", "\ud800"), said("assistant", "Hello")], "surrogate"),
        ([sent("x", "Hi"), said("assistant", "Hello")], "a turn is not a list"),
        ([["Hi"], ["Hello"]], "without a sender"),
        ([[{"text": "Hi"}]], "without a sender"),
        ([[{"text": "Hi", "sender": ["x"]}]], "without a sender"),
        ([[{"sender": "x"}]], "a turn's text is not a string"),
        ([sent("x", "\ud800"), sent("y", "Hello")], "surrogate"),
        ([sent("x", "Hi"), sent("y", "Hello"), sent("z", "Hey")], "more than two senders"),
        ([sent("x", "Hi"), sent("x", "anyone?")], "no assistant turn"),
        ([sent("x", "Hi"), sent("y", "")], "no assistant turn"),
        ([[]], "no assistant turn"),
    ],
)
def test_what_is_no_chat_says_why(messages, reason):
    with pytest.raises(BadRecord) as refused:
        conversation_of(messages)
    assert reason in refused.value.reason
