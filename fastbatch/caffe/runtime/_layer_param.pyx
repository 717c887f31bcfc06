# cython: language_level=3
"""The bytes of the LayerParameter of a Python layer: everything the prototxt says in the layer.

pycaffe passes an object without attributes to `__init__`. It is a Boost.Python object that contains the C++ message.
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


cdef const void *find_message(object layer_param) except? NULL:
    """Returns the caffe::LayerParameter in a pycaffe LayerParameter; NULL if it contains something else.

    In a Boost.Python object the list of weak references is followed by a pointer to the holder, and the holder of a
    value is {virtual methods, next holder, the value}.
    """
    cdef const char *address = <const char *> <PyObject *> layer_param
    cdef const char *holder
    cdef const char *methods
    cdef Dl_info info
    cdef Py_ssize_t offset = type(layer_param).__weakrefoffset__ + sizeof(void *)
    if peek(address + offset, &holder, sizeof(void *)) != 0:
        return NULL
    address = holder + 2 * sizeof(void *)
    if peek(address, &methods, sizeof(void *)) != 0:
        return NULL
    if (
        dladdr(methods, &info) == 0 or info.dli_sname == NULL
        or strcmp(info.dli_sname, b"_ZTVN5caffe14LayerParameterE") != 0
        or methods - <const char *> info.dli_saddr != 2 * sizeof(void *)  # after {offset to top, type information}
    ):
        return NULL
    return address


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


def serialized(layer_param):
    """Returns the LayerParameter that pycaffe gives to a layer's `__init__`, as bytes in protobuf's wire format.

    Raises LookupError if that is not possible; the message is the end of a sentence ("..., because ..."). The caller
    must check that the bytes describe this layer.
    """
    cdef void *extension = pycaffes_extension()
    cdef ByteSize byte_size = <ByteSize> symbol(extension, b"_ZNK5caffe14LayerParameter12ByteSizeLongEv")
    cdef Serialize serialize = <Serialize> symbol(
        extension, b"_ZNK6google8protobuf11MessageLite23SerializePartialToArrayEPvi")
    cdef const void *message
    cdef size_t size
    cdef bytes result
    if byte_size == NULL or serialize == NULL:
        raise LookupError("this Caffe's functions of LayerParameter cannot be found")
    message = find_message(layer_param)
    if message == NULL:
        raise LookupError("pycaffe's LayerParameter is not laid out as expected")
    if not are_of_one_library(message, <const void *> serialize):
        raise LookupError("this process has two libraries of protobuf, and the one of Caffe is hidden")
    size = byte_size(message)
    if size > INT_MAX:
        raise LookupError("this layer's parameters are larger than protobuf can write")
    result = PyBytes_FromStringAndSize(NULL, size)
    if not serialize(message, PyBytes_AS_STRING(result), <int> size):
        raise LookupError("protobuf could not write this layer's parameters")
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
