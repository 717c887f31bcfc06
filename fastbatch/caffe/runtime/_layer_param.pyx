# cython: language_level=3
"""The bytes of the LayerParameter of a Python layer, and of a solver's SolverParameter: all that their prototxt says.

pycaffe passes an object without attributes to `__init__`. It is a Boost.Python object that contains the C++ message.
`solver.param` is another, with a few attributes.
The message's own functions serialize it; they are looked up by name in the loaded libraries. No std::string is passed,
because its layout depends on the compiler: the caller asks for the size and provides the memory.

Sources of the layouts: Boost's python/object/instance.hpp and value_holder.hpp; protobuf's message_lite.h; and the C++
ABI of Linux, where an object begins with a pointer to its class's virtual methods.

Thread-safety: called with the GIL held.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.limits cimport INT_MAX
from libc.string cimport strcmp

from fastbatch.caffe.runtime._dynsym cimport Dl_info, dladdr, peek, pycaffes_extension, symbol


cdef extern from "stdbool.h":
    ctypedef bint boolean "bool"


ctypedef size_t (*ByteSize)(const void *message) noexcept nogil
ctypedef boolean (*Serialize)(const void *message, void *into, int size) noexcept nogil


cdef const void *find_message(object param, bytes kind) except? NULL:
    """Returns the C++ message in an object of pycaffe's; NULL if it contains another than caffe::<kind>.

    In a Boost.Python object the list of weak references is followed by a pointer to the holder. The holder is {virtual
    methods, next holder, the value} or, if the object refers to what another one owns, {..., pointer to the value}.
    """
    cdef const char *address = <const char *> <PyObject *> param
    cdef const char *holder
    cdef Py_ssize_t offset = type(param).__weakrefoffset__ + sizeof(void *)
    if peek(address + offset, &holder, sizeof(void *)) != 0:
        return NULL
    holder += 2 * sizeof(void *)
    if is_message(holder, kind):
        return holder
    if peek(holder, &address, sizeof(void *)) != 0 or not is_message(address, kind):
        return NULL
    return address


cdef bint is_message(const char *address, bytes kind) except -1:
    """Whether there is an object of the class caffe::<kind> at this address."""
    cdef bytes table = b"_ZTVN5caffe%d%sE" % (len(kind), kind)
    cdef const char *methods
    cdef Dl_info info
    return (
        peek(address, &methods, sizeof(void *)) == 0 and dladdr(methods, &info) != 0 and info.dli_sname != NULL
        and strcmp(info.dli_sname, table) == 0
        and methods - <const char *> info.dli_saddr == 2 * sizeof(void *)  # after {offset to top, type information}
    )


cdef bint are_of_one_library(const void *message, const void *function) except -1:
    """Returns whether this protobuf function is of the library that the message's class is from. Two may be loaded.

    The third virtual method is GetTypeName(), which protobuf's Message has for all messages.
    """
    cdef void **methods
    cdef void *method
    cdef Dl_info method_info, function_info
    return (
        peek(message, &methods, sizeof(void *)) == 0 and peek(methods + 2, &method, sizeof(void *)) == 0
        and dladdr(method, &method_info) != 0 and dladdr(function, &function_info) != 0
        and method_info.dli_fbase == function_info.dli_fbase
    )


def serialized(param, kind="LayerParameter"):
    """Returns a message that pycaffe wraps, as bytes in protobuf's wire format.

    param: the LayerParameter that pycaffe gives to a layer's `__init__`, or another message of Caffe's.
    kind: the name of the message.

    Raises LookupError if that is not possible; the message is the end of a sentence ("..., because ..."). The caller
    must check that the bytes describe what it has asked for.
    """
    cdef void *extension = pycaffes_extension()
    cdef bytes name = kind.encode()
    cdef ByteSize byte_size = <ByteSize> symbol(extension, b"_ZNK5caffe%d%s12ByteSizeLongEv" % (len(name), name))
    cdef Serialize serialize = <Serialize> symbol(
        extension, b"_ZNK6google8protobuf11MessageLite23SerializePartialToArrayEPvi")
    cdef const void *message
    cdef size_t size
    cdef bytes result
    if byte_size == NULL or serialize == NULL:
        raise LookupError(f"this Caffe's functions of {kind} cannot be found")
    message = find_message(param, name)
    if message == NULL:
        raise LookupError(f"pycaffe's {kind} is not laid out as expected")
    if not are_of_one_library(message, <const void *> serialize):
        raise LookupError("this process has two libraries of protobuf, and the one of Caffe is hidden")
    size = byte_size(message)
    if size > INT_MAX:
        raise LookupError("the parameters are larger than protobuf can write")
    result = PyBytes_FromStringAndSize(NULL, size)
    if not serialize(message, PyBytes_AS_STRING(result), <int> size):
        raise LookupError("protobuf could not write the parameters")
    return result


def keep(layer, layer_param):
    """The `__init__` of a layer: stores the LayerParameter for its setup().

    The object owns a copy of Caffe's message, valid as long as the object. Nothing else happens here: Caffe prints and
    discards exceptions from `__init__`, and param_str and phase are not set yet. An exception from a signal handler
    would be discarded too; but handlers run between two bytecode instructions, and compiled code has none.
    """
    import caffe
    caffe.Layer.__init__(layer, layer_param)
    layer._layer_param = layer_param
